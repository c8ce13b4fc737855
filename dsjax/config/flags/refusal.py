"""Wrong command lines in a sentence: flags that nobody knows, and fields named as flags."""

from __future__ import annotations

import contextlib
import difflib
import re
from collections.abc import Iterator, Mapping, Sequence

from dsjax.config import stored
from dsjax.errors import UserError

ELSEWHERE = {
    "lr": "peak", "max-lr": "peak", "batch": "batch-size", "global-batch-size": "batch-size",
    "micro-batch-size": "microbatches", "length": "seq-len", "seq-length": "seq-len",
    "context-length": "seq-len", "max-steps": "steps", "epochs": "steps", "num-layers": "layers",
    "hidden-size": "d-model", "num-heads": "heads", "vocab-size": "vocab", "num-experts": "experts",
    "out": "folder", "output-dir": "folder", "out-dir": "folder", "resume-from": "init-from",
    "dtype": "precision", "data-path": "train",
}
"""Last words of flags that other programs have, and what they are called here."""

EARLIER = {"--max-new": "--max-new-tokens"}
"""Flags of commands by the names that earlier versions took, and their names today."""


def listed(words: list[str]) -> str:
    """Words as `a, b and c`."""
    return " and ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))


def unknown(flag: str, flags: Sequence[str]) -> None:
    """Refuse a flag that is none of `flags`, and name those that may have been meant.

    Nearest are flags of the same part with a close last word, then those with the same last word,
    then those with a close one.
    """
    if flag in flags:
        return
    if (now := EARLIER.get(flag) or _today(flag)) is not None:
        raise UserError(f"{flag} has another name now; use {now}")
    part, _, last = flag.lstrip("-").rpartition(".")
    last = ELSEWHERE.get(last, last)
    parts = {known: known.lstrip("-").rpartition(".") for known in flags}
    close = {
        known: difflib.SequenceMatcher(None, last, word).ratio()
        for known, (_, _, word) in parts.items()
    }
    near = [known for known in parts if close[known] >= 0.7]
    inside = [known for known in near if part and f".{parts[known][0]}".endswith(f".{part}")]
    same = [known for known in near if parts[known][2] == last]
    alike = difflib.get_close_matches(flag, parts, n=3, cutoff=0.8)
    found = sorted(inside or same or near or alike, key=lambda known: (-close[known], len(known)))
    found = [known for known in found[:3] if close[known] > close[found[0]] - 0.1]
    mean = f", did you mean {' or '.join(found)}" if found else ""
    raise UserError(f"there is no flag {flag[:60]}{mean}; --help lists them all")


def _today(flag: str) -> str | None:
    """The flag of a field that an earlier version called so; None for others."""
    owner, _, last = flag[2:].rpartition(".")
    off = "no-" if last.startswith("no-") else ""
    path = f"{owner}.{last.removeprefix(off)}".lstrip(".").replace("-", "_")
    for old, new in stored.RENAMED.items():
        if path == old or path.startswith(f"{old}."):
            owner, _, last = f"--{new}{path[len(old):]}".replace("_", "-").rpartition(".")
            return f"{owner}.{off}{last}".lstrip(".")
    return None


def turned_off(flag: str) -> str:
    """The flag that turns a switch off: --a.no-b of --a.b."""
    part, _, last = flag.removeprefix("--").rpartition(".")
    return f"--{part}.no-{last}" if part else f"--no-{last}"


def as_typed(sentence: str, flags: Mapping[str, str]) -> str:
    """Name fields as flags: `TrainConfig.steps=0 must be` becomes `--train.steps 0 must be`.

    flags: by `CLASS.field`. Other fields of the class that is named first are named so too where
    the sentence gives them a value or says `choose FIELD from`.
    """
    named = (found[1] for found in re.finditer(r"\b((\w+)\.\w+)=", sentence) if found[1] in flags)
    owner = next(named, "").partition(".")[0]

    def flag(found: re.Match[str]) -> str:
        known = flags.get(f"{found[1] or owner}.{found[2]}")
        if known is None or found[3] == "=":
            return found[0] if known is None else f"{known} "
        return turned_off(known) if found[3] == "=False" else known

    sentence = re.sub(r"(?<![\w.-])(?:(\w+)\.)?(\w+)(=True|=False|=)", flag, sentence)
    return re.sub(r"(?<=choose )(\w+)(?= from)",
                  lambda found: flags.get(f"{owner}.{found[1]}", found[1]), sentence)


@contextlib.contextmanager
def typed_as(*names: str) -> Iterator[None]:
    """Name what a function takes by the command's flags: `top_p=0 is` becomes `--top-p 0 is`."""
    try:
        yield
    except UserError as error:
        flags = {f".{name.rpartition('.')[2]}": f"--{name.replace('_', '-')}" for name in names}
        raise UserError(as_typed(str(error), flags)) from None
