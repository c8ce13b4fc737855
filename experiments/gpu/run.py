"""The command of this experiment; `--help` names its parts and flags."""

import sys

from experiments.common import command
from experiments.gpu import STUDY

if __name__ == "__main__":
    sys.exit(command.main(STUDY))
