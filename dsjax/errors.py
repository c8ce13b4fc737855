"""The one exception a command line turns into a sentence: the user's input, not the program, is at fault."""


class UserError(ValueError):
    """Bad input, said in one sentence with cause, values and remedy; the CLI prints it and exits with 2."""
