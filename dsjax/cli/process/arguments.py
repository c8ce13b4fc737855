"""The command line in both directions: words into a dataclass, and how to call this again."""

from __future__ import annotations

import dataclasses
import re
import shlex
import shutil
import sys
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dsjax.config.fields import did_you_mean
from dsjax.errors import UserError


def parse(kind: Any, argv: Sequence[str], prog: str) -> Any:
    """Fill the dataclass of a command, or the one of a union that the first word names.

    A command with a `config` and a `run` begins with a CONFIG, whose run it lends to the flags, as
    its `lent` makes it where it has one; one with a `folder` and a `run` begins with a FOLDER, of
    which `start` of its module makes a run.
    `--help` is printed wherever it stands, and leaves with status 0. Where the first class of a
    union has INSTEAD, its flags choose another class, and without one it is the first.
    """
    from dsjax.config import load
    from dsjax.config.flags import commandline

    if isinstance(kind, types.UnionType):
        first = typing.get_args(kind)[0]
        for flag, other in getattr(first, "INSTEAD", {}).items():
            if flag in argv:
                return parse(other, [word for word in argv if word != flag], f"{prog} {flag}")
        if hasattr(first, "INSTEAD"):
            return parse(first, argv, prog)
        return _parse_one(typing.get_args(kind), argv, prog)
    names = {f.name for f in dataclasses.fields(kind)}
    if {"folder", "run"} <= names:
        return _of_folder(kind, argv, prog)
    if not {"config", "run"} <= names or (argv and argv[0] in commandline.HELP):
        return commandline.read(kind, argv, prog)
    name = load.first(argv, prog)
    own = getattr(kind, "lent", lambda run: run)(load.load(name))
    made = commandline.read(kind, argv[1:], f"{prog} {name}", lent={"config": name, "run": own})
    asked = made.run.parallel
    if asked.pipe == 1 and asked.schedule != own.parallel.schedule:
        raise UserError(f"--parallel.schedule {asked.schedule} orders the ranks of a pipeline, and "
                        "--parallel.pipe is 1; give --parallel.pipe too, or leave both out")
    return made


def _of_folder(kind: type, argv: Sequence[str], prog: str) -> Any:
    """Fill the dataclass of a command that begins with a folder; help wants none."""
    from dsjax.config.flags import commandline

    start = sys.modules[kind.__module__].start
    is_help = any(word in commandline.HELP for word in argv)
    if not is_help and (not argv or argv[0].startswith("-")):
        what = f"{argv[0]} stands where a FOLDER should" if argv else "a FOLDER is missing"
        raise UserError(f"{what}; begin as in `{prog} runs/first`, with the folder of a run or of "
                        "a released checkpoint")
    if is_help:
        argv = ["FOLDER", *argv] if argv[0].startswith("-") else argv
    run = start(None if is_help else argv[0])
    lent = {"folder": Path(argv[0]), "run": run}
    return commandline.read(kind, argv[1:], f"{prog} {argv[0]}", lent=lent)


def _parse_one(kinds: Sequence[type], argv: Sequence[str], prog: str) -> Any:
    """Fill the class that the first word names, in hyphens."""
    by_name = {re.sub(r"(?<=[a-z])(?=[A-Z])", "-", kind.__name__).lower(): kind for kind in kinds}
    if not argv:
        raise UserError(f"give {' or '.join(by_name)}; see --help")
    if argv[0] in ("-h", "--help"):
        print(f"usage: {prog} {'|'.join(by_name)} ...\n")
        for name, kind in by_name.items():
            print(f"  {name:<12} {(kind.__doc__ or '').partition(chr(10))[0]}")
        print(f"\n`{prog} NAME --help` tells more.")
        raise SystemExit(0)
    if argv[0] not in by_name:
        begun = [name for name in by_name if name.startswith(argv[0])]
        mean = f", did you mean {begun[0]}" if len(begun) == 1 else did_you_mean(argv[0], by_name)
        noun = "flag" if argv[0].startswith("-") else "command"
        raise UserError(f"there is no {noun} {argv[0]}{mean}; choose from {', '.join(by_name)}")
    return parse(by_name[argv[0]], argv[1:], f"{prog} {argv[0]}")


def myself() -> str:
    """Return the words that run this command again from here, also where the PATH lacks it.

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
