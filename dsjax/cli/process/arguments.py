"""The command line in both directions: flags into a dataclass, and how to call this again."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dsjax.errors import UserError


def parse(kind: Any, argv: Sequence[str], prog: str, description: str | None = None) -> Any:
    """Fill a dataclass, or one of a union, from flags; bad ones are refused in a sentence.

    `--help` prints every field and leaves with status 0.
    """
    import tyro

    from dsjax.config import refusal, typed

    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(kind, args=list(argv), prog=prog, description=description,
                            registry=typed.registry())
    except SystemExit as leave:
        if leave.code in (0, None):
            raise
        sentence = refusal.refusal(said.getvalue())
        named = refusal.flags_of(kind) if dataclasses.is_dataclass(kind) else {}
        raise UserError(refusal.as_typed(sentence, named)) from None


def myself() -> str:
    """What to type for this command to run again from here, whether or not it is on the PATH.

    `dsjax` where that is found; otherwise its path, or the interpreter's with `-m dsjax` when the
    process was started so, as make does.
    """
    program = Path(sys.argv[0])
    if program.stem == "__main__":
        return f"{_typed(Path(sys.executable))} -m dsjax"
    return _typed(program)


def _typed(program: Path) -> str:
    """A program by its name where the PATH finds it, else by its path, relative when inside."""
    found = shutil.which(program.name)
    if found is not None and Path(found).absolute() == program.absolute():
        return program.name
    path = program.absolute()
    if path.is_relative_to(Path.cwd()):
        path = path.relative_to(Path.cwd())
    return shlex.quote(str(path))
