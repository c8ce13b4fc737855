"""The `dsjax` command: main finds the subcommand, tune sets the process up for speed, arguments
reads a command line, each other file is one subcommand.
"""
