"""The `dsjax` command: main finds the subcommand; process holds what surrounds it (streams, ctrl-C,
devices, arguments); benches are parts of `bench`; each other file is one subcommand.
"""

import os
import signal
import sys


def leave(_number: int, _frame: object) -> None:
    """End at ctrl-C with a word: nothing has begun."""
    os.write(2, b"dsjax: interrupted\n")
    os._exit(130)


# The command's first moment: what is imported from here on takes a second where a machine is busy.
_is_command = os.path.basename(sys.argv[0]) == "dsjax" or sys.argv[0] == "-m"
if _is_command and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, leave)
