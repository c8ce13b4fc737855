"""The `dsjax` command: find the subcommand, import only its file, turn bad input into a sentence.

A subcommand is a file `dsjax/cli/NAME.py` with one of two functions: `run(argv) -> int`, which
reads its own arguments, or `main(args) -> int`, whose argument is a frozen dataclass that tyro
fills from the command line. Both return the exit status: 0, 2 for bad input, 130 for ctrl-C.
"""

from __future__ import annotations

import difflib
import importlib
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_type_hints

from dsjax.cli import arguments
from dsjax.cli.tune import tune_process
from dsjax.errors import UserError


@dataclass(frozen=True)
class Command:
    """A subcommand: what it does in half a line, and whether it runs JAX programs that last."""

    summary: str
    is_heavy: bool = False


COMMANDS = {
    "demo": Command("train a small DeepSeek-V3 on Shakespeare and let it speak", is_heavy=True),
    "train": Command("train a model from a config, or go on with a run", is_heavy=True),
    "generate": Command("let a trained model continue a prompt", is_heavy=True),
    "evaluate": Command("score a trained model on text and tasks", is_heavy=True),
    "show": Command("print a config's parameters, FLOPs and cache bytes, part by part"),
    "data": Command("turn text into a tokenizer and token shards"),
    "convert": Command("read and write released checkpoints"),
    "pipeline": Command("draw a pipeline schedule and say what it costs"),
    "compile": Command("compile a run for a machine that is not here"),
    "bench": Command("measure training and decoding on this machine", is_heavy=True),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run `dsjax ARGV...`; returns the exit status, and never raises for bad input or ctrl-C."""
    if argv is None and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _interrupt)
    try:
        try:
            status = _run(list(sys.argv[1:] if argv is None else argv), is_process=argv is None)
        except SystemExit as stop:  # tyro leaves this way after its help
            status = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        sys.stdout.flush()
    except UserError as error:
        print(f"dsjax: {error}", file=sys.stderr)
        status = 2
    except (KeyboardInterrupt, ImportError) as error:
        if isinstance(error, ImportError) and not _was_interrupted:
            raise
        print("\ndsjax: interrupted", file=sys.stderr)
        status = 130
    except BrokenPipeError:  # the reader left, as `head` does; nothing more can be said to it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 141
    return status


_was_interrupted = False


def _interrupt(number: int, frame: Any) -> None:
    """Ctrl-C; remembered, because an extension module that is being loaded hides what it raises."""
    global _was_interrupted
    _was_interrupted = True
    raise KeyboardInterrupt


def available() -> dict[str, Command]:
    """The subcommands whose file is here, in the order of the help."""
    here = Path(__file__)
    return {name: c for name, c in COMMANDS.items() if here.with_name(f"{name}.py").is_file()}


def _run(argv: list[str], is_process: bool) -> int:
    if not argv or argv[0] in ("-h", "--help"):
        print(_help())
        return 0 if argv else 2
    if argv[0] == "--version":
        print(_version())
        return 0
    name, rest = argv[0], argv[1:]
    if name not in available():
        raise UserError(_unknown(name))
    if is_process and COMMANDS[name].is_heavy:
        tune_process()
    module = importlib.import_module(f"dsjax.cli.{name}")
    if hasattr(module, "run"):
        return module.run(rest)
    kind = get_type_hints(module.main)["args"]
    return module.main(arguments.parse(kind, rest, f"dsjax {name}"))


def _help() -> str:
    lines = [f"  {name:<10} {command.summary}" for name, command in available().items()]
    return "\n".join(
        [
            "usage: dsjax COMMAND ...",
            "",
            "The DeepSeek-V3 and R1 system in JAX.",
            "",
            *lines,
            "",
            "`dsjax COMMAND --help` tells more; `dsjax --version` names the versions.",
        ]
    )


def _version() -> str:
    from importlib.metadata import version

    from dsjax import __version__

    python = ".".join(map(str, sys.version_info[:3]))
    return f"dsjax {__version__} (jax {version('jax')}, Python {python})"


def _unknown(name: str) -> str:
    close = difflib.get_close_matches(name, available(), n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"choose from {', '.join(available())}"
    return f"unknown command {name!r}: {hint}"
