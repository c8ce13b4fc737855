"""`python -m experiments`: what each experiment claims, costs, has recorded and found."""

from __future__ import annotations

import difflib
import json
import sys
from collections.abc import Sequence

from dsjax.errors import UserError, printable
from experiments.common import command, index
from experiments.common.study import studies


def main(argv: Sequence[str] | None = None) -> int:
    """Print the index, or that of the experiments that are named; returns the exit status."""
    parser = command.Parser(prog="python -m experiments", allow_abbrev=False, description=__doc__,
                            epilog="Each command has --help, and --quick for a small form of it.")
    parser.add_argument("name", nargs="*", help="experiments to show; all, if none is named")
    parser.add_argument("--json", action="store_true", help="a JSON list, with an object each")
    found = {study.name: study for study in studies()}
    try:
        asked = parser.parse_args(sys.argv[1:] if argv is None else argv)
        for name in asked.name:
            if name not in found:
                close = difflib.get_close_matches(name, found, n=1)
                raise UserError(f"there is no experiment {name!r}: " + (
                    f"did you mean {close[0]}?" if close else f"choose from {', '.join(found)}"))
    except UserError as error:
        print(printable(f"experiments: {error}"), file=sys.stderr)
        return 2
    except SystemExit as stop:  # argparse leaves this way after its help
        return stop.code if isinstance(stop.code, int) else 1
    shown = [found[name] for name in asked.name or found]
    if asked.json:
        print(json.dumps([index.plain(study) for study in shown], indent=1))
    else:
        print("\n\n".join("\n".join(index.lines(study)) for study in shown))
    return 0


if __name__ == "__main__":
    sys.exit(main())
