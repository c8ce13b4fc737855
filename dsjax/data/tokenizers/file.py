"""Settings of a tokenizer.json, obeyed or refused by name.

`tokenizer` promises `decode(encode(text)) == text` for every string. That holds of a
byte-level BPE whose vocabulary has the stand-in of every byte that UTF-8 uses, whose pre-tokenizers
cut text without taking anything away, with one ByteLevel step, and whose normalizers, prefixes and
dropout do nothing. Anything else is refused with the setting's name. One setting is left
out and said (`remarks`): the normalizer NFC, as Qwen has it. It would turn some characters into
others; without it text in NFC, nearly all there is, gets the same ids, and other text is kept.

Harmless, and so taken: settings of padding and truncation (the library, too, applies them only when
asked), unknown tokens and byte fallback (nothing is unknown), ignored merges, post-processors (they
are for prompts, `Tokenizer.prompt`), and words that no text can reach.

A file from elsewhere is data that may be hostile: sizes, ids, nesting and patterns are limited.
"""

import functools
import gzip
import io
import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from dsjax import disk
from dsjax.data.tokenizers import patterns
from dsjax.errors import UserError

if TYPE_CHECKING:  # the library costs import time, so it is loaded where it is used
    import tokenizers

MOST_IDS = 2**22
"""Ids that a tokenizer may have; the largest released have 2**18."""
MOST_STEPS = 64
NOT_IN_UTF8 = {0xC0, 0xC1, *range(0xF5, 0x100)}
USE = "use a byte-level BPE such as DeepSeek's, Qwen's or Llama 3's"
WHOLE = "give a whole tokenizer.json"
_KEEPING = ("Isolated", "MergedWithPrevious", "MergedWithNext", "Contiguous")
_DECIDES = {
    "Split": (("pattern", None), ("behavior", None), ("invert", False)),
    "Digits": (("individual_digits", False),),
    "Punctuation": (("behavior", "Isolated"),),
    "FixedLength": (("length", None),),
    "ByteLevel": (("use_regex", True),),
}
_CUTS = ("Split", "Digits", "Punctuation", "UnicodeScripts", "FixedLength")
Returned = TypeVar("Returned")


def read(path: Path) -> str:
    """Return the text of a tokenizer.json or tokenizer.json.gz, within `disk.LIMIT` bytes."""
    data = disk.read_bytes(path, "give a tokenizer.json")
    if path.suffix.lower() != ".gz":
        return _text(data, path)
    try:
        data = gzip.GzipFile(fileobj=io.BytesIO(data)).read(disk.LIMIT + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"tokenizer {path} cannot be read ({error}); {WHOLE}") from None
    if len(data) > disk.LIMIT:
        raise UserError(f"tokenizer {path} unpacks to more than the {disk.LIMIT:,} bytes that a "
                        f"tokenizer may have; {WHOLE}")
    return _text(data, path)


def _text(data: bytes, path: Path) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"tokenizer {path} is not UTF-8 at byte {error.start}; {WHOLE}") from None


def parse(source: str, what: str) -> dict[str, Any]:
    """Return what a tokenizer.json holds, all kinds of values checked, added tokens included."""
    description = disk.parse_json(source, what, WHOLE)
    if not isinstance(description, dict):
        raise UserError(f"{what} holds no JSON object; {WHOLE}")
    description.setdefault("added_tokens", [])
    model = _kind(description, "model", dict, what)
    model.setdefault("type", "BPE" if "merges" in model else None)  # GPT-2's own has none
    decoder = [step["type"] for step in steps(description, "decoder", "decoders", what)]
    if model["type"] != "BPE" or decoder.count("ByteLevel") != 1:
        raise UserError(f"{what} is not a byte-level BPE, the only kind supported; {USE}")
    if others := sorted(set(decoder) - {"ByteLevel", "Fuse"}):
        raise UserError(f"{what} has the decoder {', '.join(others)}, which changes text; {USE}")
    _check_words(_kind(model, "vocab", dict, what, "model."), what)
    for merge in _kind(model, "merges", list, what, "model."):
        if not isinstance(merge, str):
            is_pair = isinstance(merge, list) and len(merge) == 2
            if not is_pair or not all(isinstance(part, str) for part in merge):
                raise UserError(f"{what} has {_shown(merge)} among its merges; {WHOLE}")
        elif merge.count(" ") != 1:
            raise UserError(f"{what} has {_shown(merge)} among its merges, which are two words "
                            f"with a space between; {WHOLE}")
    _check_added(_kind(description, "added_tokens", list, what), model["vocab"], what)
    return description


def merges(description: dict[str, Any]) -> list[list[str]]:
    """Return the pairs of words that are joined, in order."""
    found = description["model"]["merges"]
    return [m.split(" ") if isinstance(m, str) else m for m in found]


def identity(description: dict[str, Any]) -> list[Any]:
    """Return all besides the ids of words that decides what ids a text gets, in one form."""
    cuts = [
        [step["type"], *(step.get(key, usual) for key, usual in _DECIDES.get(step["type"], ()))]
        for step in steps(description, "pre_tokenizer", "pretokenizers", "the tokenizer")
    ]
    normalizers = steps(description, "normalizer", "normalizers", "the tokenizer")
    flags = [
        [token["id"], key]
        for token in description.get("added_tokens", [])
        for key in ("lstrip", "rstrip", "single_word")
        if token.get(key)
    ]
    is_whole = bool(description["model"].get("ignore_merges"))
    return [merges(description), [n["type"] for n in normalizers], cuts, flags, is_whole]


def steps(description: dict[str, Any], name: str, inner: str, what: str) -> list[dict[str, Any]]:
    """Return the steps of a normalizer, pre-tokenizer or decoder in order, sequences opened."""
    found: list[dict[str, Any]] = []
    waiting = [description.get(name)]
    while waiting:
        step = waiting.pop()
        if step is None:
            continue
        if not isinstance(step, dict) or not isinstance(step.get("type"), str):
            raise UserError(f"{what} has {_shown(step)} as a {name}; {WHOLE}")
        if step["type"] == "Sequence":
            waiting += reversed(_kind(step, inner, list, what, f"{name}."))
        else:
            found.append(step)
        if len(found) + len(waiting) > MOST_STEPS:
            raise UserError(f"{what} has more than {MOST_STEPS} steps in its {name}; {USE}")
    return found


def lossless(description: dict[str, Any], alphabet: dict[str, int],
             what: str) -> tuple["tokenizers.Tokenizer", tuple[str, ...]]:
    """Return the library's tokenizer that keeps every string, and what was left out of it.

    alphabet: the byte that each stand-in character means.
    """
    _check_model(description["model"], alphabet, what)
    remarks = _check_normalizer(description, what)
    _check_cuts(description, what)
    plain = description | {
        "added_tokens": [token | {"special": True} for token in description["added_tokens"]],
        "model": description["model"] | {"dropout": None, "unk_token": None},
        **dict.fromkeys(("normalizer", "post_processor", "padding", "truncation")),
    }
    core = build(plain, what)
    core.encode_special_tokens = True
    _check_ids(core, description, what)
    _check_time(core, description, what)
    _check_round_trip(core, alphabet, what)
    return core, remarks


def build(description: dict[str, Any], what: str) -> "tokenizers.Tokenizer":
    """Return the library's tokenizer of a description."""
    from tokenizers import Tokenizer as Core

    text = json.dumps(description)
    try:
        return guarded(lambda: Core.from_str(text), what)
    except UserError:
        raise
    except Exception as error:  # the library raises no narrower type
        raise UserError(f"{what} cannot be built from its tokenizer.json "
                        f"({disk.cause(error)}); {WHOLE}") from None


def guarded(call: Callable[[], Returned], what: str) -> Returned:
    """Run a call into the library; its panics, which no except clause can name, get a sentence."""
    try:
        return call()
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise UserError(f"{what} cannot be used: the library gave up ({disk.cause(error)}); "
                        f"{USE}") from None


# Kinds of values


def _kind(found: dict[str, Any], name: str, kind: type, what: str, above: str = "") -> Any:
    value = found.get(name)
    if not isinstance(value, kind):
        wanted = "an object" if kind is dict else "a list"
        here = _shown(value) if name in found else "nothing"
        raise UserError(f"{what} has {here} where {above}{name} should be {wanted}; {WHOLE}")
    return value


def _shown(value: Any) -> str:
    """A value from a file, cut short."""
    kinds: dict[type, str] = {dict: "an object", list: "a list", type(None): "null"}
    return kinds.get(type(value)) or repr(value)[:60]


def _is_id(value: Any) -> bool:
    return type(value) is int and 0 <= value < MOST_IDS


def _check_words(vocab: dict[str, Any], what: str) -> None:
    for name, number in vocab.items():
        if not _is_id(number):
            raise UserError(f"{what} gives {name[:60]!r} the id {_shown(number)}; ids are whole "
                            f"numbers from 0 to below {MOST_IDS:,}")
    if len(set(vocab.values())) < len(vocab):
        raise UserError(f"{what} gives one id to several words; {WHOLE}")


def _check_added(added: list[Any], vocab: dict[str, int], what: str) -> None:
    taken = {number: name for name, number in vocab.items()}
    for token in added:
        given = token if isinstance(token, dict) else {"content": token}
        name: Any = given.get("content")
        number: Any = given.get("id")
        if not isinstance(name, str) or not name or not _is_id(number):
            raise UserError(f"{what} has an added token {_shown(name)} with the id "
                            f"{_shown(number)}; it needs a name and an id from 0 to below "
                            f"{MOST_IDS:,}")
        if taken.setdefault(number, name) != name:
            raise UserError(f"{what} gives the id {number} to {taken[number][:60]!r} and to the "
                            f"added token {name[:60]!r}; {WHOLE}")
        if vocab.get(name, number) != number:
            raise UserError(f"{what} gives {name[:60]!r} the id {vocab[name]} in its vocabulary, "
                            f"but {number} as an added token; {WHOLE}")


# What would change text


def _check_model(model: dict[str, Any], alphabet: dict[str, int], what: str) -> None:
    if model.get("dropout") not in (None, 0):
        raise UserError(f"{what} has dropout {_shown(model['dropout'])}, which cuts words by "
                        "chance; set it to null in the file")
    for name in ("continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(name) not in (None, ""):
            raise UserError(f"{what} has {name} {_shown(model[name])}, which adds to text; {USE}")
    missing = [b for c, b in alphabet.items() if c not in model["vocab"] and b not in NOT_IN_UTF8]
    if missing:
        some = ", ".join(f"0x{b:02x}" for b in sorted(missing)[:5])
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        raise UserError(f"{what} cannot hold every text: its vocabulary lacks the bytes {some}"
                        f"{more}; train it with the whole byte alphabet, or {USE}")


def _check_normalizer(description: dict[str, Any], what: str) -> tuple[str, ...]:
    names = {step["type"] for step in steps(description, "normalizer", "normalizers", what)}
    if others := sorted(names - {"NFC"}):
        raise UserError(f"{what} has the normalizer {', '.join(others)}, which changes text; {USE}")
    if not names:
        return ()
    return (f"{what} has the normalizer NFC, which is left out: text keeps its characters, so that "
            "only text in NFC gets the ids that other software gives it",)


def _check_cuts(description: dict[str, Any], what: str) -> None:
    found = steps(description, "pre_tokenizer", "pretokenizers", what)
    bytes_steps = [step for step in found if step["type"] == "ByteLevel"]
    if len(bytes_steps) != 1:
        raise UserError(f"{what} has {len(bytes_steps)} ByteLevel steps in its pre_tokenizer where "
                        f"one must turn text into bytes; {USE}")
    if bytes_steps[0].get("add_prefix_space") is not False:
        raise UserError(f"{what} has add_prefix_space, which puts a space before text; set it to "
                        f"false in its pre_tokenizer, or {USE}")
    for step in found:
        if step["type"] not in (*_CUTS, "ByteLevel"):
            raise UserError(f"{what} has the pre-tokenizer {step['type'][:60]}, which takes away "
                            f"from text or is not known; {USE}")
        if step["type"] in ("Split", "Punctuation") and step.get("behavior") not in _KEEPING:
            raise UserError(f"{what} has a pre-tokenizer {step['type']} with behavior "
                            f"{_shown(step.get('behavior'))}, which takes away from text; use one "
                            f"of {', '.join(_KEEPING)}")
        for pattern in _patterns([step]):
            if why := patterns.refusal(pattern):
                raise UserError(f"{what} has a pattern {pattern[:60]!r} that may take hours for a "
                                f"line of text: {why}; {USE}")


def _patterns(found: list[dict[str, Any]]) -> list[str]:
    """The regular expressions of pre-tokenizers."""
    given = [step["pattern"] for step in found if isinstance(step.get("pattern"), dict)]
    return [p["Regex"] for p in given if isinstance(p.get("Regex"), str)]


# What the library made of it


def _check_ids(core: "tokenizers.Tokenizer", description: dict[str, Any], what: str) -> None:
    said = description["model"]["vocab"] | {
        token["content"]: token["id"] for token in description["added_tokens"]
    }
    made = core.get_vocab(with_added_tokens=True)
    if made != said:
        name = next(n for n in {**said, **made} if said.get(n) != made.get(n))
        raise UserError(f"{what} gives {name[:60]!r} the id {said.get(name)}, but the library "
                        f"reads it as {made.get(name)}: added tokens must follow each other; "
                        f"{WHOLE}")


def _check_time(core: "tokenizers.Tokenizer", description: dict[str, Any], what: str) -> None:
    found = _patterns(steps(description, "pre_tokenizer", "pretokenizers", what))
    cut = core.pre_tokenizer
    if not found or cut is None:
        return
    slow = guarded(lambda: patterns.slow_text(cut.pre_tokenize_str, found), what)
    if slow is not None:
        raise UserError(f"{what} has patterns that take more than {patterns.SECONDS} s for "
                        f"{patterns.TRIES[-1]:,} characters of {slow!r}; {USE}")


def _ids(core: "tokenizers.Tokenizer", text: str) -> list[int]:
    return core.encode(text, add_special_tokens=False).ids


def _check_round_trip(core: "tokenizers.Tokenizer", alphabet: dict[str, int], what: str) -> None:
    """Try what the settings promise, in case the library reads one in another way."""
    letters = [chr(c) for c in (*range(0x300), *range(0x300, 0x3000, 61), 0xFFFD, 0xFEFF, 0x1F642)]
    text = "".join(letters) + " Two  words,\r\n\t 1234 \u4f60\u597d caf\u00e9 e\u0301 "
    for one in (text, text[::-1], "", " "):
        ids = guarded(functools.partial(_ids, core, one), what)
        names = "".join(core.id_to_token(i) or "" for i in ids)
        if bytes(alphabet.get(c, 0) for c in names).decode(errors="replace") != one:
            raise UserError(f"{what} loses or changes text, as a try shows; {USE}")
