"""The `dsjax` command: main finds the subcommand, hugepages restarts for speed, each other file
is one subcommand.
"""
