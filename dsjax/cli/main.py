"""The `dsjax` command: find the subcommand, import only its file, turn bad input into a sentence.

A subcommand is a file `dsjax/cli/NAME.py` with a function `main(args) -> int`. Its argument is a
frozen dataclass, or one of a union, that is filled from the command line; its result is the exit
status: 0, 2 for bad input, 130 for ctrl-C.
"""

from __future__ import annotations

import difflib
import errno
import importlib
import os
import re
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_type_hints

from dsjax.cli.process import arguments, interrupt, streams
from dsjax.cli.process.tune import tune_process
from dsjax.disk import cause
from dsjax.errors import UserError, drop, say
from dsjax.runtime import program_cache

TRACEBACK = "DSJAX_TRACEBACK"
"""Set to anything, it shows the traceback of what is otherwise one sentence."""


@dataclass(frozen=True)
class Command:
    """A subcommand: what it does in half a line, and whether it runs JAX programs that last."""

    summary: str
    is_heavy: bool = False


COMMANDS = {
    "demo": Command("train a small DeepSeek-V3 on Shakespeare and let it speak", is_heavy=True),
    "train": Command("train a model from a config, or go on with a run", is_heavy=True),
    "sft": Command("tune a model on examples: all of it, adapters, or experts", is_heavy=True),
    "rl": Command("teach a model by rewards: GRPO from rules", is_heavy=True),
    "generate": Command("let a trained model continue a prompt", is_heavy=True),
    "chat": Command("talk to a trained model in the terminal", is_heavy=True),
    "serve": Command("answer OpenAI's API over HTTP with a trained model", is_heavy=True),
    "evaluate": Command("score a trained model on public tasks", is_heavy=True),
    "show": Command("print a config's parameters, FLOPs and cache bytes, part by part"),
    "loads": Command("draw how evenly a run used its experts, and what copies would mend"),
    "data": Command("turn text into a tokenizer and token shards"),
    "audit": Command("find the items of tasks in a training corpus"),
    "convert": Command("read and write released checkpoints"),
    "pipeline": Command("draw a pipeline schedule and say what it costs"),
    "plan": Command("say what a run takes on a machine: time, memory, dollars"),
    "compile": Command("compile a run for a machine that is not here"),
    "bench": Command("measure training and decoding on this machine", is_heavy=True),
}

def main(argv: Sequence[str] | None = None) -> int:
    """Run `dsjax ARGV...`; returns the exit status, and never raises for bad input or ctrl-C."""
    if argv is not None:
        return _answer(list(argv), is_process=False)
    interrupt.listen()
    streams.prepare()
    status = _answer(sys.argv[1:], is_process=True)
    if status == interrupt.STATUS:
        interrupt.ignore()
    return status


def _answer(argv: list[str], is_process: bool) -> int:
    """The exit status of a command; what ends it early is said in a sentence.

    Programming errors keep their traceback, and DSJAX_TRACEBACK=1 shows every other.
    """
    try:
        try:
            status = _run(argv, is_process)
        except SystemExit as leaving:  # --help leaves this way
            status = leaving.code if isinstance(leaving.code, int) else int(bool(leaving.code))
        sys.stdout.flush()
        return status
    except BrokenPipeError:  # the reader left, as `head` does; nothing more can be said to it
        drop(sys.stdout)
        return 141
    except KeyboardInterrupt:
        return interrupt.tell()
    except UserError as error:
        return _refused(error, f"{error}")
    except (OSError, MemoryError, RecursionError, UnicodeError) as error:
        if isinstance(error, OSError) and error.filename == streams.OUTPUT:
            drop(sys.stdout)
        if interrupt.was_received():
            return interrupt.tell()
        return _refused(error, f"{_unforeseen(error)}; {TRACEBACK}=1 shows where")
    except Exception:  # a library that ctrl-C interrupts while it is loaded raises what it likes
        if interrupt.was_received():
            return interrupt.tell()
        raise


def _refused(error: Exception, why: str) -> int:
    if os.environ.get(TRACEBACK):
        traceback.print_exception(error)
    short = re.sub(r"\S{300,}", lambda word: f"{word[0][:120]}...{word[0][-60:]}", why)
    say(f"dsjax: {short}")
    return 2


def _unforeseen(error: Exception) -> str:
    """Say path, cause and remedy of what the machine refused and no function foresaw."""
    if isinstance(error, MemoryError):
        return "there is not enough memory; use smaller sizes or fewer processes"
    if isinstance(error, RecursionError):
        return "something given is nested too deep; write it flatter"
    if isinstance(error, UnicodeError):
        return f"something given is not text in UTF-8 ({cause(error)}); write it in UTF-8"
    assert isinstance(error, OSError), "the kinds that are caught"
    where = " and ".join(str(name) for name in (error.filename, error.filename2) if name)
    remedy = {errno.ENOSPC: "make room", errno.EDQUOT: "make room in your quota",
              errno.EMFILE: "raise the limit with `ulimit -n`",
              errno.ENAMETOOLONG: "use shorter names", errno.EROFS: "name another place"}
    return (f"{where or 'a file'} cannot be read or written ({cause(error)}); "
            f"{remedy.get(error.errno or 0, 'look at its rights, or name another place')}")


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
    args = arguments.parse(get_type_hints(module.main)["args"], rest, f"dsjax {name}")
    if is_process and COMMANDS[name].is_heavy:  # a benchmark compiles its own programs
        program_cache.keep(getattr(args, "cache", False))
    return module.main(args)


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
    close = difflib.get_close_matches(name, [*available(), "--help", "--version"], n=1)
    others = f"choose from {', '.join(available())}, --help or --version"
    hint = f"did you mean {close[0]!r}?" if close else others
    what = "flag before a command" if name.startswith("-") else "command"
    return f"unknown {what} {name!r}: {hint}"
