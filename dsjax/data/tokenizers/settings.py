"""Begin and end tokens as the files beside a tokenizer.json name them.

A released checkpoint says them in four places, which need not agree; as in transformers,
tokenizer_config.json wins over the post-processor inside tokenizer.json for what is put around a
prompt (where it has add_bos_token or add_eos_token), and generation_config.json over config.json
for the ids that end a text. The end token that stands between documents is, in this order, the one
that is asked for, eos_token of tokenizer_config.json, the first of those ids, a known name.

The files are looked for beside DIR/tokenizer.json (or PREFIXtokenizer.json, as
PREFIXtokenizer_config.json) and, in a run folder that was converted, in its `released/` if that
holds the same tokenizer.
"""

import gzip
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dsjax import disk
from dsjax.errors import UserError

END, FIM_BEGIN, FIM_HOLE, FIM_END = (
    "<|end_of_text|>",
    "<|fim_begin|>",
    "<|fim_hole|>",
    "<|fim_end|>",
)
# DeepSeek writes special names with a full-width bar and a low block for the space.
_BAR, _SPACE = "\uff5c", "\u2581"

FLAG = "--end-token NAME (--data.end-token NAME in training)"


def _deepseek(name: str) -> str:
    return f"<{_BAR}{name.replace(' ', _SPACE)}{_BAR}>"


NAMES = {
    "begin": (_deepseek("begin of sentence"), "<|begin_of_text|>", "[BOS]"),
    "end": (
        END,
        _deepseek("end of sentence"),
        "<|endoftext|>",
        "[EOS]",
        "<|im_end|>",
        "<|eot_id|>",
        "</s>",
    ),
    "fim_begin": (FIM_BEGIN, _deepseek("fim begin"), "<|fim_prefix|>"),
    "fim_hole": (FIM_HOLE, _deepseek("fim hole"), "<|fim_suffix|>"),
    "fim_end": (FIM_END, _deepseek("fim end"), "<|fim_middle|>"),
}

RELEASED = "released"
WORDS, SETTINGS, GENERATION, CONFIG = (
    "tokenizer.json",
    "tokenizer_config.json",
    "generation_config.json",
    "config.json",
)
_TOKENS = ("bos_token", "eos_token")
_ADDED = ("add_bos_token", "add_eos_token")


@dataclass(frozen=True)
class Settings:
    """Settings in the files beside a tokenizer; `source` names the file with the tokens."""

    tokens: Mapping[str, Any] = field(default_factory=dict)
    """Names or None of bos_token and eos_token, and whether both are added, where that is said."""
    end_ids: tuple[int, ...] = ()
    """Ids that end a text."""
    source: str = ""

    def files(self, end_ids: tuple[int, ...]) -> dict[str, dict[str, Any]]:
        """Return what the files beside a saved tokenizer hold, by name; nothing if none is needed.

        end_ids: all ids that end a text, the one between documents first.
        """
        files: dict[str, dict[str, Any]] = {}
        if self.tokens:
            files[SETTINGS] = {**self.tokens, "tokenizer_class": "PreTrainedTokenizerFast"}
        if self.end_ids or len(end_ids) > 1:
            files[GENERATION] = {"eos_token_id": list(end_ids)}
        return files


def beside(path: Path, name: str) -> Path | None:
    """Return where a file that belongs to a tokenizer file lies, whether it is there or not."""
    stem = path.name.removesuffix(".gz")
    if not stem.endswith(WORDS) or (name == CONFIG and stem != WORDS):
        return None
    return path.with_name(stem.removesuffix(WORDS) + name)


def read(path: Path, words: Container[str]) -> Settings:
    """Return what the files beside a tokenizer say. words: the names of all its ids."""
    for place in (path, path.parent / RELEASED / WORDS):
        if place != path and not _is_same(place, path):
            continue
        tokens, source = _tokens(beside(place, SETTINGS), words)
        end_ids = _end_ids(beside(place, GENERATION)) or _end_ids(beside(place, CONFIG))
        if tokens or end_ids:
            return Settings(tokens, end_ids, source)
    return Settings()


def _is_same(other: Path, path: Path) -> bool:
    if path.suffix == ".gz" or not other.is_file():
        return False
    return other.stat().st_size == path.stat().st_size and other.read_bytes() == path.read_bytes()


def _tokens(path: Path | None, words: Container[str]) -> tuple[dict[str, Any], str]:
    """The settings of a tokenizer_config.json that matter here."""
    if path is None or not path.exists():
        return {}, ""
    remedy = "mend or remove it"
    data = disk.read_object(path, remedy)
    found: dict[str, Any] = {}
    for name in _TOKENS:
        if name not in data:
            continue
        value = data[name]
        value = value.get("content") if isinstance(value, dict) else value
        if value is not None and not isinstance(value, str):
            raise UserError(f"{path} has {str(value)[:40]} as {name}, which is a text; {remedy}")
        if name == "bos_token" and value not in words and not data.get("add_bos_token"):
            value = None  # nobody asks for it
        if value is not None and value not in words:
            raise UserError(f"{path} names the {name} {value[:60]!r}, which the tokenizer does not "
                            f"have; {remedy}")
        found[name] = value
    for name in _ADDED:
        if name not in data:
            continue
        if not isinstance(data[name], bool | None):
            raise UserError(f"{path} has {str(data[name])[:40]} as {name}, which is true or "
                            f"false; {remedy}")
        found[name] = bool(data[name])
    return found, str(path)


def _end_ids(path: Path | None) -> tuple[int, ...]:
    """eos_token_id of a generation_config.json or config.json: one id or several."""
    if path is None or not path.exists():
        return ()
    data = disk.read_object(path, "mend or remove it")
    found = data.get("eos_token_id")
    ids = found if isinstance(found, list) else [] if found is None else [found]
    for number in ids:
        if type(number) is not int:
            raise UserError(f"{path} has {str(number)[:40]} as eos_token_id, which is a whole "
                            "number or a list of them; mend or remove it")
    return tuple(dict.fromkeys(ids))


def end_id(ids: Mapping[str, int], settings: Settings, ends: Sequence[int], end: str | None,
           what: str) -> int:
    """Return the id that ends documents: as asked for, as the files say, or of a known name.

    ids: those of all names. ends: those of `settings.end_ids` that are no words of text.
    """
    if end is not None:
        if end not in ids:
            raise UserError(f"{what} has no token {end!r}, so it cannot be the end token; name one "
                            f"that it has: {FLAG}")
        return ids[end]
    said = settings.tokens.get("eos_token")
    if said is not None:
        return ids[said]
    for i in (*ends, *(ids[name] for name in NAMES["end"] if name in ids)):
        return i
    raise UserError(f"{what} has no end token that a file beside it names, and none among "
                    f"{', '.join(NAMES['end'])}; name it: {FLAG}")


def save(path: Path, source: str, beside_it: Mapping[str, dict[str, Any]]) -> None:
    """Write a tokenizer.json (gzipped when the name ends in .gz) and the files that belong to it.

    What a file of those names says of another tokenizer is taken out of it, so that none misleads;
    a file that is there as it should be is not touched.
    """
    for name, said in ((SETTINGS, (*_TOKENS, *_ADDED)), (GENERATION, ("eos_token_id",))):
        where = beside(path, name)
        if where is None or not (name in beside_it or where.exists()):
            continue
        there = disk.read_object(where, "mend or remove it") if where.exists() else None
        kept = {key: value for key, value in (there or {}).items() if key not in said}
        if there != kept | beside_it.get(name, {}):
            disk.write_json(where, kept | beside_it.get(name, {}))
    data = source.encode()
    data = gzip.compress(data, mtime=0) if path.suffix == ".gz" else data
    if not path.is_file() or path.read_bytes() != data:
        disk.write_whole(path, data)
