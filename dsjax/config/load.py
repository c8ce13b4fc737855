"""Config files and command-line overrides: how a `RunConfig` comes to be.

A config file is Python with one function `config() -> RunConfig`; a run's folder is one too, by the
config.json that it holds. `override` lets tyro read any
field from flags named like it (`--model.moe.experts 8`). A field that may hold one of several
classes keeps the one it has; `--model.moe None` takes it away, `--model.attention gqa` changes it
and then wants the fields that have no default, and a flag below an absent one brings it
(`--model.rope.yarn.factor 40`). Stages of a curriculum are written `FROM_STEP:SEQ_LEN`.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import io
import sys
import traceback
import types
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from dsjax.config import refusal, typed
from dsjax.config.fields import class_choices, did_you_mean, field_types
from dsjax.config.flags import take
from dsjax.config.run import RunConfig
from dsjax.config.stored import run_from_json, run_to_json
from dsjax.disk import cause, read_bytes, read_object
from dsjax.errors import UserError

__all__ = ["folder_of", "load", "names", "override", "run_from_json", "run_to_json"]

STORED = "config.json"
PACKAGE = Path(__file__).resolve().parents[1]
INSTALLED = PACKAGE / "configs"
FOLDER = INSTALLED if INSTALLED.is_dir() else PACKAGE.parent / "configs"
"""The project's own configs: beside the package in a checkout, inside it where pip puts it."""
SHORT = {"--precision": "--precision.matmul", "--profile": "--output.profile"}
"""Flags that are typed often, and what they stand for."""


# Files


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


# Command line


def override(run: RunConfig, argv: Sequence[str], prog: str = "dsjax train CONFIG",
             own: Sequence[str] = ()) -> RunConfig:
    """Replace the fields that flags name; `--help` prints every field and leaves with status 0.

    own: the command's own flags, taken already, which a misspelled one may have meant.
    """
    import tyro

    run, left = _switch(run, [_dashed(token) for token in argv])
    absent = [flag for flag, owner, name, _ in _unions(copy.copy(run), "--")
              if getattr(owner, name) is None]
    for flag in (token.partition("=")[0] for token in left):
        for part in absent:
            if flag.startswith(f"{part}."):
                raise UserError(f"{flag} does not exist with {part} None; leave one of them out")
        refusal.unknown(flag, [*sorted(_flags(run)), "--help"], own)
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(
                RunConfig,
                args=left,
                default=run,
                prog=prog,
                description=_description(run),
                config=(tyro.conf.AvoidSubcommands,),
                registry=typed.registry(),
            )
    except SystemExit as leave:
        if leave.code in (0, None):
            raise
        sentence = refusal.refusal(said.getvalue())
        raise UserError(refusal.as_typed(sentence, refusal.flags_of(run))) from None


def _dashed(token: str) -> str:
    """Write the name of a flag with hyphens."""
    if not token.startswith("--"):
        return token
    name, equals, value = token.partition("=")
    name = name.replace("_", "-")
    return SHORT.get(name, name) + equals + value


def _switch(run: RunConfig, argv: list[str]) -> tuple[RunConfig, list[str]]:
    """Give the config the classes that flags ask for; return it with the flags that are left."""
    run = copy.copy(run)
    for flag, owner, name, classes in _unions(run, "--"):
        asked, argv = take(argv, flag)
        held = getattr(owner, name)
        by_name = {_short(c): c for c in classes if c is not type(None)}
        if asked is None and held is None and any(t.startswith(flag + ".") for t in argv):
            asked = next(iter(by_name)) if len(by_name) == 1 else None
        if asked is None:
            continue
        choice = asked.lower().removesuffix("config")
        if choice == "none" and type(None) in classes:
            _set(owner, name, None)
        elif choice not in by_name:
            choices = [*by_name, "None"] if type(None) in classes else [*by_name]
            first = next(iter(field_types(classes[0])))
            raise UserError(f"{flag} {asked} is not a choice; use {' or '.join(choices)}, or a "
                            f"field of it, as {flag}.{first.replace('_', '-')}")
        elif by_name[choice] is not type(held):
            _set(owner, name, _blank(by_name[choice]))
    return run, argv


def _unions(part: Any, prefix: str) -> Iterator[tuple[str, Any, str, tuple[type, ...]]]:
    """Every field that may hold one of several classes: flag, owner, field, classes.

    Owners are copies already in place, so that setting their fields changes no one else's config;
    the walk enters a field after the caller has set it.
    """
    for name, hint in field_types(type(part)).items():
        flag = prefix + name.replace("_", "-")
        classes = class_choices(hint)
        if len(classes) > 1:
            yield flag, part, name, classes
        held = getattr(part, name)
        if dataclasses.is_dataclass(held):
            held = copy.copy(held)
            _set(part, name, held)
            yield from _unions(held, flag + ".")


def _blank(cls: type) -> Any:
    """An unvalidated instance for tyro to fill: defaults where there are any, else required."""
    import tyro

    blank: Any = object.__new__(cls)
    for f in dataclasses.fields(cls):
        if f.default is not dataclasses.MISSING:
            _set(blank, f.name, f.default)
        elif f.default_factory is not dataclasses.MISSING:
            _set(blank, f.name, f.default_factory())
        else:
            _set(blank, f.name, tyro.MISSING)
    return blank


def _set(owner: Any, name: str, value: Any) -> None:
    """Set a field of a frozen copy; tyro constructs, and so validates, the final one."""
    object.__setattr__(owner, name, value)


def _flags(part: Any, prefix: str = "--") -> Iterator[str]:
    """Every flag a config answers to."""
    for f in dataclasses.fields(part):
        held, flag = getattr(part, f.name), prefix + f.name.replace("_", "-")
        if dataclasses.is_dataclass(held):
            yield from _flags(held, flag + ".")
        else:
            yield flag
        if isinstance(held, bool):
            yield prefix + "no-" + f.name.replace("_", "-")


def _description(run: RunConfig) -> str:
    """What the help says first: the fields that may change their class."""
    kinds = [
        f"{flag} {'|'.join('None' if c is type(None) else _short(c) for c in classes)}"
        for flag, _, _, classes in _unions(copy.copy(run), "--")
    ]
    return f"Any field of the run may be replaced. Parts of another kind: {', '.join(kinds)}."


def _short(cls: type) -> str:
    """How a class is called on the command line: MLAConfig is mla."""
    return cls.__name__.lower().removesuffix("config")
