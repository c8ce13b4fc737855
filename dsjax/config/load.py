"""Config files and command-line overrides: how a `RunConfig` comes to be.

A config file is Python with one function `config() -> RunConfig`. `override` lets tyro read any
field from flags named like it (`--model.moe.experts 8`). A field that may hold one of several
classes keeps the one it has; `--model.moe None` takes it away, `--model.attention gqa` changes it
and then wants the fields that have no default, and a flag below an absent one brings it
(`--model.rope.yarn.factor 40`). Stages of a curriculum are written `FROM_STEP:LENGTH`.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import difflib
import importlib.util
import io
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from dsjax.config.fields import class_choices, did_you_mean, field_types
from dsjax.config.refusal import refusal
from dsjax.config.run import RunConfig, SequenceStage
from dsjax.config.stored import run_from_json, run_to_json
from dsjax.errors import UserError

__all__ = ["load", "names", "override", "run_from_json", "run_to_json"]

PACKAGE = Path(__file__).resolve().parents[1]
INSTALLED = PACKAGE / "configs"
FOLDER = INSTALLED if INSTALLED.is_dir() else PACKAGE.parent / "configs"
"""The project's own configs: beside the package in a checkout, inside it where pip puts it."""


# Files


def names() -> list[str]:
    """Names of the project's configs."""
    return sorted(p.stem for p in FOLDER.glob("*.py") if not p.stem.startswith("_"))


def first(argv: Sequence[str], command: str) -> str:
    """The config that a command line begins with."""
    if not argv or argv[0].startswith("-"):
        what = f"{argv[0]} stands where a CONFIG should" if argv else "a CONFIG is missing"
        raise UserError(
            f"{what}; begin as in `{command} tiny`, with one of {', '.join(names())} or the path "
            "of a .py file"
        )
    return argv[0]


def load(path_or_name: str) -> RunConfig:
    """Run the one function `config()` of a Python file, or of a project config by its bare name."""
    path = _find(path_or_name)
    spec = importlib.util.spec_from_file_location(f"dsjax_config_{path.stem}", path)
    assert spec is not None, f"{path} ends in .py"
    assert spec.loader is not None, f"{path} is a file"
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        make = getattr(module, "config", None)
        run = make() if callable(make) else None
    except Exception as error:
        raise UserError(_blame(path, error)) from error
    if make is None or not isinstance(run, RunConfig):
        found = "has no function config()" if make is None else f"returned {type(run).__name__}"
        raise UserError(f"{path} {found}; a config file defines config() and returns a RunConfig")
    return run


def _find(path_or_name: str) -> Path:
    """Path of a config file, given or found by name."""
    given = Path(path_or_name)
    is_path = given.suffix == ".py" or len(given.parts) > 1
    if is_path and given.is_file():
        if given.suffix != ".py":
            raise UserError(f"{given} is not a Python file; a config is a .py file with config()")
        return given
    stem = given.stem.replace("-", "_").lower()
    if not is_path and stem in names():
        return FOLDER / f"{stem}.py"
    known = [str(p) for p in sorted(given.parent.glob("*.py"))] if is_path else names()
    mean = did_you_mean(str(given) if is_path else stem, known)
    raise UserError(
        f"there is no config {path_or_name!r}{mean}; "
        f"choose from {', '.join(names()) or 'your own files'}, or give the path of a .py file"
    )


def _blame(path: Path, error: Exception) -> str:
    """Say where a config file failed and why."""
    if isinstance(error, SyntaxError):
        return f"{path}, line {error.lineno}: {error.msg}; correct the file"
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == str(path)]
    where = f"{path}, line {lines[-1]}" if lines else str(path)
    kind = "" if type(error) in (ValueError, UserError) else f"{type(error).__name__}: "
    return f"{where}: {kind}{error}"


# Command line


def override(run: RunConfig, argv: Sequence[str], prog: str = "dsjax train CONFIG") -> RunConfig:
    """Replace the fields that flags name; `--help` prints every field and leaves with status 0."""
    import tyro

    run, left = _switch(run, [_dashed(token) for token in argv])
    _refuse_unknown(left, sorted(_flags(run)))
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
                registry=_registry(),
            )
    except SystemExit as leave:
        if leave.code in (0, None):
            raise
        raise UserError(refusal(said.getvalue())) from None


def _dashed(token: str) -> str:
    """Write the name of a flag with hyphens."""
    if not token.startswith("--"):
        return token
    name, equals, value = token.partition("=")
    return name.replace("_", "-") + equals + value


def _switch(run: RunConfig, argv: list[str]) -> tuple[RunConfig, list[str]]:
    """Give the config the classes that flags ask for; return it with the flags that are left."""
    run = copy.copy(run)
    for flag, owner, name, classes in _unions(run, "--"):
        asked, argv = _take(argv, flag)
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
            raise UserError(f"{flag} {asked} is not a choice; use {' or '.join(choices)}")
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


def _take(argv: list[str], flag: str) -> tuple[str | None, list[str]]:
    """Remove `flag VALUE` or `flag=VALUE`; return the last value and what is left."""
    value, left, tokens = None, [], iter(argv)
    for token in tokens:
        if token == flag:
            value = next(tokens, None)
            if value is None:
                raise UserError(f"{flag} needs a value; see --help")
        elif token.startswith(flag + "="):
            value = token.partition("=")[2]
        else:
            left.append(token)
    return value, left


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


def _refuse_unknown(argv: list[str], flags: list[str]) -> None:
    """Name the flag nobody knows and those that are close, by the whole name or its last word."""
    for token in argv:
        flag = token.partition("=")[0]
        if not flag.startswith("--") or flag in flags or flag == "--help":
            continue
        words = {f: f.lstrip("-").rpartition(".")[2] for f in [flag, *flags]}
        last = words.pop(flag)
        close = difflib.get_close_matches(last, words.values(), n=3, cutoff=0.7)
        same = [f for f in flags if words[f] == last]
        near = same or [f for f in flags if words[f] in close]
        mean = did_you_mean(flag, near) or did_you_mean("", near, cutoff=0.0)
        raise UserError(f"there is no flag {flag}{mean}; --help lists them all")


def _registry() -> Any:
    """Tell tyro how a stage of the sequence-length curriculum is written."""
    from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec

    def read(words: list[str]) -> tuple[SequenceStage, ...]:
        try:
            pairs = [(float(start), int(length)) for start, _, length in
                     (word.partition(":") for word in words)]
        except ValueError:
            raise ValueError("expected FROM_STEP:LENGTH") from None
        return tuple(SequenceStage(start, length) for start, length in pairs)

    def rule(info: Any) -> Any:
        if info.type != tuple[SequenceStage, ...]:
            return None
        return PrimitiveConstructorSpec(
            nargs="*",
            metavar="FROM_STEP:LENGTH",
            instance_from_str=read,
            is_instance=lambda x: isinstance(x, tuple),
            str_from_instance=lambda x: [f"{s.from_step}:{s.length}" for s in x],
        )

    registry = ConstructorRegistry()
    registry.primitive_rule(rule)
    return registry


def _short(cls: type) -> str:
    """How a class is called on the command line: MLAConfig is mla."""
    return cls.__name__.lower().removesuffix("config")
