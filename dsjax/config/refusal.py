"""Wrong command lines in one sentence: what tyro draws as a box, and flags that nobody knows."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from dsjax.config import stored
from dsjax.config.fields import did_you_mean, field_types
from dsjax.errors import UserError

# The frame and the rules between its parts are drawn with characters U+2500 to U+257F, and where
# the output is not known to take those, with spaces and hyphens.
FRAME = "[\u2500-\u257f]"
RULE = f"(?:{FRAME}{{5}}|-{{5}}).*\n?"

ELSEWHERE = {
    "lr": "peak", "max-lr": "peak", "batch": "batch-size", "global-batch-size": "batch-size",
    "micro-batch-size": "microbatches", "length": "seq-len", "seq-length": "seq-len",
    "context-length": "seq-len", "max-steps": "steps", "epochs": "steps", "num-layers": "layers",
    "hidden-size": "d-model", "num-heads": "heads", "vocab-size": "vocab", "num-experts": "experts",
    "out": "folder", "output-dir": "folder", "out-dir": "folder", "resume-from": "init-from",
    "dtype": "precision", "data-path": "train",
}
"""Last words of flags that other programs have, and what they are called here."""


def refusal(box: str) -> str:
    """Say cause, value and remedy of what tyro refused."""
    parts = re.split(RULE, box)[1:] or [box]
    text, *rest = (" ".join(re.sub(FRAME, " ", part).split()) for part in parts)
    if text.startswith("Missing from"):
        named = re.findall(r"^. {5}(\S+)", parts[0], re.MULTILINE)
        return f"give {_listed(named) or 'what is required'}; see --help"
    if text.startswith("Unrecognized options:"):
        return _unknown(text.partition(": ")[2], " ".join(rest))
    if found := re.match(r"Error parsing (\S+): (?:.*: )?is empty$", text):
        return f"{found[1]} is empty; {'leave it out or ' * found[1].startswith('-')}name one"
    if re.match(r"Error parsing \[.*: Could not find valid parse .*(?<![^\[ ])''(?![^],])", text):
        return "one of the names is empty; leave it out or name one"
    if found := re.match(r"Error parsing (--\S+): .*?('[^']*')?$", text):
        kind = re.search(re.escape(found[1]) + r" (\S+)", " ".join(rest))
        taken = kind[1].replace("{None}|", "None or ") if kind else "another value"
        got = f", not {found[2]}" if found[2] else ""
        return f"{found[1]} takes {taken}{got}; see --help"
    if found := re.match(r"Missing value for argument '(.*?)'", text):
        return f"{found[1]} needs a value; see --help"
    if found := re.match(r"invalid choice (.*) for argument '(.*)'\. .*\((.*)\)", text):
        return f"{found[2]} is {found[1]}; choose from {found[3]}"
    if found := re.match(r"Expected one of \{(.*)\}", text):
        return f"give {found[1].replace(', ', ' or ')}; see --help"
    text = re.sub(r"^Error parsing [\w.]+: ", "", text).rstrip(".")
    return text if ";" in text else f"{text or 'the command line is not valid'}; see --help"


def _unknown(words: str, rest: str) -> str:
    """Name the first word that is no flag or belongs to none, and what may have been meant."""
    first = words.split(", ")[0]
    if found := re.search(r"Available subcommands: ([\w-]+(?:, [\w-]+)*)", rest):
        known = found[1].split(", ")
        begun = [word for word in known if word.startswith(first)]
        mean = f", did you mean {' or '.join(begun)}" if begun else did_you_mean(first, known)
        return f"there is no {first}{mean}; choose from {found[1]}"
    if not first.startswith("-"):
        return (f"these words belong to no flag: {words}; a switch takes no value (--NAME or "
                "--no-NAME); see --help")
    meant = list(dict.fromkeys(re.findall(r"(?<!\S)--[a-z][\w.-]*", rest.partition("meant:")[2])))
    meant = [flag for flag in meant if flag != "--help"]
    mean = f", did you mean {' or '.join(meant)}" if meant else ""
    return f"there is no flag {first}{mean}; --help lists them all"


def _listed(words: list[str]) -> str:
    """Words as `a, b and c`."""
    return " and ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))


def unknown(flag: str, flags: Sequence[str], own: Sequence[str]) -> None:
    """Refuse a flag that is none of `flags`, and name those that may have been meant.

    `own` are others of the command. Nearest are flags of the same part with a close last word, then
    those with the same last word, then those with a close one.
    """
    if not flag.startswith("--") or flag in flags:
        return
    if (now := _today(flag)) is not None:
        raise UserError(f"{flag} has another name now; use {now}")
    part, _, last = flag.lstrip("-").rpartition(".")
    last = ELSEWHERE.get(last, last)
    parts = {known: known.lstrip("-").rpartition(".") for known in [*flags, *own]}
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
        part, _, last = known.rpartition(".") if "." in known else ("-", "", known[2:])
        switch = f"{part}.no-{last}" if part != "-" else f"--no-{last}"
        return switch if found[3] == "=False" else known

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


def flags_of(part: Any, prefix: str = "--") -> dict[str, str]:
    """The flag of each field of a config, or of a class of arguments, by `CLASS.field`."""
    made, found = part if isinstance(part, type) else type(part), {}
    for f in dataclasses.fields(made):
        flag = prefix + f.name.replace("_", "-")
        found[f"{made.__name__}.{f.name}"] = flag
        held = field_types(made)[f.name] if part is made else getattr(part, f.name)
        if dataclasses.is_dataclass(held):
            found |= flags_of(held, f"{flag}.")
    return found
