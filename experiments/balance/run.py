"""The command of this experiment; `--help` names its parts and flags."""

import sys

from experiments.balance import STUDY
from experiments.common import command

if __name__ == "__main__":
    sys.exit(command.main(STUDY))
