"""Config files: how a `RunConfig` comes to be before any flag.

A config file is Python with one function `config() -> RunConfig`; a run's folder is one too, by the
config.json that it holds. Flags are read by dsjax.config.flags.commandline.
"""

from __future__ import annotations

import contextlib
import dataclasses
import sys
import traceback
import types
from collections.abc import Sequence
from pathlib import Path

from dsjax.config.fields import did_you_mean
from dsjax.config.run import RunConfig
from dsjax.config.stored import run_from_json
from dsjax.disk import cause, read_bytes, read_object
from dsjax.errors import UserError

STORED = "config.json"
PACKAGE = Path(__file__).resolve().parents[1]
INSTALLED = PACKAGE / "configs"
FOLDER = INSTALLED if INSTALLED.is_dir() else PACKAGE.parent / "configs"
"""The project's own configs: beside the package in a checkout, inside it where pip puts it."""

def names() -> list[str]:
    """Names of the project's configs."""
    return sorted(p.stem for p in FOLDER.glob("*.py") if not p.stem.startswith("_"))


def first(argv: Sequence[str], command: str) -> str:
    """The config that a command line begins with."""
    if not argv or argv[0].startswith("-"):
        what = f"{argv[0]} stands where a CONFIG should" if argv else "a CONFIG is missing"
        raise UserError(
            f"{what}; begin as in `{command} tiny`, with one of {', '.join(names())}, the path of "
            "a .py file or the folder of a run"
        )
    return argv[0]


def load(path_or_name: str) -> RunConfig:
    """The run of a project config by its bare name, of a Python file, or of a run's folder.

    A file's one function `config()` is run. A folder, or its config.json, gives back the run that
    wrote it, with the folder as `output.folder`.
    """
    path = _find(path_or_name)
    if path.name == STORED:
        run = run_from_json(path)
        return dataclasses.replace(
            run, output=dataclasses.replace(run.output, folder=str(path.parent)))
    return _run_file(path)


def folder_of(path_or_name: str) -> Path | None:
    """The run's folder that a CONFIG names; None where it is a name or a Python file."""
    path = _find(path_or_name)
    return path.parent if path.name == STORED else None


def _run_file(path: Path) -> RunConfig:
    """Run the function `config()` of a file; what it prints goes to standard error.

    The file is compiled anew: Python's own cache takes an edit within a second for no edit.
    """
    source = read_bytes(path, "give a Python file with one config()")
    module = types.ModuleType(f"dsjax_config_{path.stem}")
    module.__file__ = str(path)
    sys.modules[module.__name__] = module  # classes that it defines look for their module there
    try:
        with contextlib.redirect_stdout(sys.stderr):
            exec(compile(source, str(path), "exec", dont_inherit=True), module.__dict__)
            make = getattr(module, "config", None)
            run = make() if callable(make) else None
    except (Exception, SystemExit) as error:  # a user's program raises what it likes
        raise UserError(_blame(path, error)) from error
    if make is None or type(run) is not RunConfig:
        found = "has no function config()" if make is None else f"returned {type(run).__name__}"
        raise UserError(f"{path} {found}; a config file defines config() and returns a RunConfig")
    return run


def _find(path_or_name: str) -> Path:
    """Path of a config file or of a run's config.json, given or found by name."""
    given, stem = Path(path_or_name), Path(path_or_name).stem.replace("-", "_").lower()
    is_path = given.suffix == ".py" or "/" in path_or_name
    try:
        if not is_path and stem in names():
            return FOLDER / f"{stem}.py"
        if path_or_name and given.is_dir():
            return _stored(given)
        if given.is_file() or given.is_fifo():
            if given.name == STORED:
                return _stored(given.parent)
            if given.suffix == ".py":
                return given
            raise UserError(f"{given} is not a config; give a .py file with config(), or the "
                            "folder of a run")
    except OSError as error:
        raise UserError(f"{path_or_name!r} cannot be read ({cause(error)}); give a config "
                        "that can be") from None
    known = [str(p) for p in sorted(given.parent.glob("*.py"))] if is_path else names()
    mean = did_you_mean(str(given) if is_path else stem, known)
    raise UserError(
        f"there is no config {path_or_name!r}{mean}; choose from "
        f"{', '.join(names()) or 'your own files'}, or give the path of a .py file or the folder "
        "of a run"
    )


def _stored(folder: Path) -> Path:
    """The config.json of a run's folder; other folders get a sentence of their own."""
    path = folder / STORED
    if not path.is_file():
        raise UserError(f"{folder} is a folder without {STORED}; give the folder of a run, or the "
                        "path of a .py file")
    if "model_type" in read_object(path, "give the folder of a run"):
        raise UserError(f"{folder} is a released checkpoint; convert it first: dsjax convert "
                        f"hf-to-dsjax {folder} runs/{folder.absolute().name}")
    return path


def _blame(path: Path, error: BaseException) -> str:
    """Say where a config file failed and why, in a line."""
    if isinstance(error, SyntaxError):
        at = f", line {error.lineno}" if error.lineno else ""
        return f"{path}{at}: {error.msg}; correct the file"
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == str(path)]
    where = f"{path}, line {lines[-1]}" if lines else str(path)
    said = (str(error).splitlines() or [""])[0][:300]
    if isinstance(error, SystemExit):
        return f"{where}: it leaves Python ({said or 'no status'}); return a RunConfig instead"
    if isinstance(error, ValueError) and ";" in said:  # a config's own sentence, with its remedy
        return f"{where}: {said}"
    fix = "correct the file"
    if isinstance(error, ImportError):
        fix = "install what it imports, or correct the file"
    return f"{where}: {type(error).__name__}{': ' * bool(said)}{said}; {fix}"
