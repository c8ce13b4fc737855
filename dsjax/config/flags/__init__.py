"""The command line: flags from dataclasses, and what is wrong with a line in a sentence.

Reading order: flag_tree (a dataclass as flags), commandline (a line read into it), typed (the
values in it), refusal (a wrong flag as a sentence).
"""
