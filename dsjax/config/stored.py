"""A run's config as JSON, written beside its checkpoints and read back exactly."""

from __future__ import annotations

import copy
import dataclasses
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from dsjax import disk
from dsjax.config.fields import class_choices, did_you_mean, field_types
from dsjax.config.run import RunConfig
from dsjax.errors import UserError

RENAMED = {
    "train.batch": "train.batch_size",
    "train.length": "train.seq_len",
    "train.batch_start": "train.batch_size_start",
    "train.batch_ramp_steps": "train.batch_size_ramp_steps",
    "train.batch_multiple": "train.batch_size_multiple",
    "train.curriculum.length": "train.curriculum.seq_len",
    "train.precision": "precision.matmul",
    "train.activations": "precision.activations",
    "rate": "learning_rate",
    "start_from": "init_from",
    "parallel.headroom": "parallel.capacity_factor",
    "place.out": "output.folder",
    "place.remat": "machine.remat",
    "place.fp8": "machine.fp8_matmul",
    "place.unroll": "machine.unroll",
    **{f"place.{name}": f"output.{name}" for name in (
        "resume", "eval_every", "eval_batches", "save_every", "keep", "log_every", "tensorboard",
        "profile")},
}
"""Fields by the names that earlier versions wrote and took, and their names today."""


def renamed(data: dict[str, Any]) -> dict[str, Any]:
    """A config as JSON holds it, fields of earlier versions under today's names."""
    data = copy.deepcopy(data)
    for old, new in RENAMED.items():
        (*there, before), (*here, after) = old.split("."), new.split(".")
        for owner in _owners(data, there):
            if before in owner:
                into = owner if there == here else _made(data, here)
                if isinstance(into, dict) and after not in into:
                    into[after] = owner.pop(before)
    if data.get("place") == {}:
        del data["place"]
    return data


def _made(data: Any, path: Sequence[str]) -> Any:
    """The value under a path of keys; dicts are made where there is nothing."""
    for key in path:
        data = data.setdefault(key, {}) if isinstance(data, dict) else None
    return data


def _owners(data: Any, path: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The dicts under a path of keys; those of a list each by itself."""
    if isinstance(data, list):
        for part in data:
            yield from _owners(part, path)
    elif isinstance(data, dict) and path:
        yield from _owners(data.get(path[0]), path[1:])
    elif isinstance(data, dict):
        yield data


def run_to_json(run: RunConfig, path: Path | str) -> None:
    """Write a run, whole or not at all: a resumed one is compared with it.

    A field that may hold one of several classes names its class under `kind`.
    """
    disk.write_json(path, _plain(run), "make room or name another --output.folder")


def run_from_json(path: Path | str) -> RunConfig:
    """Read back exactly what `run_to_json` wrote, of any version; refuse unknown keys."""
    data = disk.read_object(path, "put back the config.json of the run, or give another run")
    try:
        return _build(RunConfig, renamed(data), "run")
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise UserError(f"{path}: {error}; put back the config.json of the run, or give "
                        "another run") from None


def _plain(value: Any) -> Any:
    """A config as dicts, lists and numbers."""
    if isinstance(value, tuple):
        return [_plain(v) for v in value]
    if not dataclasses.is_dataclass(value):
        return value
    made = {}
    for name, hint in field_types(type(value)).items():
        held = getattr(value, name)
        made[name] = _plain(held)
        if dataclasses.is_dataclass(held) and len(set(class_choices(hint)) - {type(None)}) > 1:
            made[name] = {"kind": type(held).__name__} | made[name]
    return made


def _build(hint: Any, data: Any, where: str) -> Any:
    """Build a field of type `hint` from what JSON gave: dicts become classes and lists tuples.

    Values of another type are left as they are, for the class that holds them to refuse.
    """
    if typing.get_origin(hint) is tuple and isinstance(data, list):
        inner = typing.get_args(hint)[0]
        return tuple(_build(inner, v, f"{where}[{i}]") for i, v in enumerate(data))
    members = class_choices(hint) or (hint,) * dataclasses.is_dataclass(hint)
    classes = {c.__name__: c for c in members if c is not type(None)}
    if not classes or not isinstance(data, dict):
        return data
    if len(classes) == 1:
        return _build_class(next(iter(classes.values())), data, where)
    kind, data = data.get("kind"), {k: v for k, v in data.items() if k != "kind"}
    if not isinstance(kind, str) or kind not in classes:
        raise ValueError(f"{where}.kind is {repr(kind)[:60]}; use one of {list(classes)}")
    return _build_class(classes[kind], data, where)


def _build_class(cls: type, data: dict[str, Any], where: str) -> Any:
    """A config class from its dict, every key known and every field without default there."""
    hints = field_types(cls)
    for key in data:
        if key not in hints:
            mean = did_you_mean(key, hints)
            raise ValueError(f"{where} has the unknown key {key!r}{mean}; remove it")
    has_default = {
        f.name
        for f in dataclasses.fields(cls)
        if f.default is not dataclasses.MISSING or f.default_factory is not dataclasses.MISSING
    }
    for name in hints:
        if name not in data and name not in has_default:
            raise ValueError(f"{where} lacks {name!r}, which {cls.__name__} needs; add it")
    return cls(**{k: _build(hints[k], v, f"{where}.{k}") for k, v in data.items()})
