"""A page of Python whose outputs stand on it: docs/tour.md.

The Python blocks of the page are one program, run from top to bottom. What a block prints stands in
the `text` block that follows it. `python -m experiments.common.tour` writes these blocks anew, and
a test fails while they differ from what the blocks print.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import re
import sys
from collections.abc import Sequence

from dsjax.disk import write_whole
from dsjax.errors import UserError, printable
from experiments.common.record import ROOT

PAGE = ROOT / "docs" / "tour.md"
BLOCK = re.compile(r"^```python\n(?P<code>.*?)^```\n(?P<shown>\n```text\n.*?^```\n)?", re.M | re.S)


def fill(text: str) -> str:
    """Run the Python blocks of a page in order and put after each what it prints.

    Raises:
        UserError: a block fails, with its line on the page.
    """
    names: dict[str, object] = {"__name__": "tour"}

    def run(match: re.Match[str]) -> str:
        above = text.count("\n", 0, match.start("code"))
        printed = io.StringIO()
        program = compile("\n" * above + match["code"], str(PAGE.relative_to(ROOT)), "exec")
        with contextlib.redirect_stdout(printed):
            try:
                exec(program, names)
            except Exception as error:
                raise UserError(f"the block at line {above + 1} of the page fails: {error}; "
                                "mend it, or what it calls") from error
        lines = [line.rstrip() for line in printed.getvalue().splitlines()]
        shown = "\n```text\n" + "\n".join(lines) + "\n```\n" if lines else ""
        return f"```python\n{match['code']}```\n{shown}"

    return BLOCK.sub(run, text)


def main(argv: Sequence[str] | None = None) -> int:
    """Write the outputs of the tour anew; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m experiments.common.tour",
                                     description="Run the tour and write its outputs into it.")
    parser.parse_args(argv)
    try:
        text = PAGE.read_text()
        if (made := fill(text)) != text:
            write_whole(PAGE, made)
    except UserError as error:
        print(printable(f"experiments: {error}"), file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
