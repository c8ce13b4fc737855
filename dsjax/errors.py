"""The one exception that a command line turns into a sentence: the user's input is at fault."""


class UserError(ValueError):
    """Bad input: a sentence with cause, values and remedy; the CLI prints it and exits with 2."""
