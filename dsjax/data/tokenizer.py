"""Byte-level BPE tokenizers: load any, train one, and know how many bytes each id stands for.

The V3 tokenizer is a byte-level BPE of 128K ids (V3 section 4.1); every string is representable and
`decode(encode(text)) == text`. Bits per byte, the unit in which the report compares models with
different tokenizers (V3 section 4.4), needs the byte count of each id: `token_bytes`.

Limits: byte-level BPE only (DeepSeek, GPT-2, Llama 3, Qwen); SentencePiece-style files are refused.
Names of added tokens (`<|end_of_text|>`, DeepSeek's roles) written out in a text are plain text to
`encode`, so that no document can forge the end of another or a role; `encode(text, special=True)`
turns them into their ids as Hugging Face's does, for chat templates and FIM prompts.
Axis: V vocabulary.
"""

import codecs
import gzip
import hashlib
import json
import os
import re
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dsjax.errors import UserError

if TYPE_CHECKING:  # the library costs import time, so it is loaded where it is used
    import tokenizers

END, FIM_BEGIN, FIM_HOLE, FIM_END = (
    "<|end_of_text|>",
    "<|fim_begin|>",
    "<|fim_hole|>",
    "<|fim_end|>",
)
SPECIAL = (END, FIM_BEGIN, FIM_HOLE, FIM_END)
# DeepSeek writes special names with a full-width bar and a low block for the space.
_BAR, _SPACE = "\uff5c", "\u2581"


def _deepseek(name: str) -> str:
    return f"<{_BAR}{name.replace(' ', _SPACE)}{_BAR}>"


_NAMES = {
    "begin": (_deepseek("begin of sentence"), "<|begin_of_text|>"),
    "end": (END, _deepseek("end of sentence"), "<|endoftext|>"),
    "fim_begin": (FIM_BEGIN, _deepseek("fim begin"), "<|fim_prefix|>"),
    "fim_hole": (FIM_HOLE, _deepseek("fim hole"), "<|fim_suffix|>"),
    "fim_end": (FIM_END, _deepseek("fim end"), "<|fim_middle|>"),
}


@dataclass(frozen=True)
class Tokenizer:
    """A byte-level BPE; `decode(encode(text)) == text` for every string. Ids are int.

    Build it with `load` or `train_bpe`. `source` is its tokenizer.json; `core` is the Rust object
    made from that, with every added token marked special, and is not to be changed.
    """

    source: str
    core: "tokenizers.Tokenizer"
    vocab: int
    end_id: int
    begin_id: int | None
    fim_begin_id: int | None
    fim_hole_id: int | None
    fim_end_id: int | None

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        """Return the ids of `text`; with `special`, names of added tokens become their ids."""
        if not special:
            return self.core.encode(text, add_special_tokens=False).ids
        ids: list[int] = []
        for i, piece in enumerate(self._added_names.split(text)):  # odd pieces are names
            ids += [self._id_of[piece]] if i % 2 else self.encode(piece)
        return ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of each text, on all cores."""
        batch = self.core.encode_batch_fast(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in batch]

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of `ids`, special ones by name; bytes that are not UTF-8 give U+FFFD."""
        pieces = [self.pieces[i] for i in ids]
        return b"".join(pieces).decode("utf-8", errors="replace")

    def save(self, path: str | Path) -> None:
        """Write tokenizer.json (gzipped when the name ends in .gz), whole or not at all."""
        path = Path(path)
        data = self.source.encode()
        data = gzip.compress(data, mtime=0) if path.suffix == ".gz" else data
        temporary = path.with_name(f"{path.name}.{os.getpid()}.part")
        temporary.write_bytes(data)
        os.replace(temporary, path)

    @cached_property
    def pieces(self) -> tuple[bytes, ...]:
        """The bytes that each id decodes to [V]; an added token's are those of its name."""
        added = {i: name.encode() for i, name in self._added.items()}
        table = _byte_of_character()
        names = {i: name for name, i in self.core.get_vocab(with_added_tokens=False).items()}
        return tuple(
            added[i] if i in added else bytes(table[c] for c in names.get(i, ""))
            for i in range(self.vocab)
        )

    @cached_property
    def fingerprint(self) -> str:
        """Sixteen hex digits that change with any id or merge, whatever library wrote the file."""
        merges = json.loads(self.source)["model"]["merges"]
        merges = [m.split(" ") if isinstance(m, str) else m for m in merges]
        ids = sorted((i, name) for name, i in self.core.get_vocab(True).items())
        return hashlib.sha256(json.dumps([ids, merges]).encode()).hexdigest()[:16]

    @cached_property
    def _added(self) -> dict[int, str]:
        return {i: token.content for i, token in self.core.get_added_tokens_decoder().items()}

    @cached_property
    def _id_of(self) -> dict[str, int]:
        return {name: i for i, name in self._added.items()}

    @cached_property
    def _added_names(self) -> re.Pattern:
        longest_first = sorted(self._added.values(), key=len, reverse=True)
        return re.compile(f"({'|'.join(map(re.escape, longest_first))})")


def load(path: str | Path, *, end: str | None = None) -> Tokenizer:
    """Read a byte-level tokenizer.json or tokenizer.json.gz; `end` names an unusual end token."""
    path = Path(path)
    try:
        data = path.read_bytes()
        text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode()
        description = json.loads(text)
        kind, decoder = description["model"]["type"], description["decoder"]
    except FileNotFoundError as error:
        raise UserError(f"tokenizer {path} does not exist; give a tokenizer.json") from error
    except (OSError, EOFError, zlib.error, ValueError, KeyError, TypeError) as error:
        reason = f"cannot be read ({error}); is it a whole tokenizer.json?"
        raise UserError(f"tokenizer {path} {reason}") from error
    if kind != "BPE" or not _is_byte_level(decoder):
        raise UserError(
            f"tokenizer {path} is not a byte-level BPE, the only kind supported; "
            "use one such as DeepSeek's, GPT-2's or Llama 3's"
        )
    return _wrap(text, (end,) if end else _NAMES["end"], f"tokenizer {path}")


def train_bpe(texts: Iterable[str], vocab: int, special: tuple[str, ...] = SPECIAL) -> Tokenizer:
    """Train a byte-level BPE of `vocab` ids, special ones first; equal texts give equal ids.

    Splits numbers as V3's tokenizer does (three digits at most), the rest as GPT-2's. A text with
    too few pairs that occur twice gives a smaller vocabulary: read it from the result.
    """
    from tokenizers import Regex, decoders, models, pre_tokenizers, trainers
    from tokenizers import Tokenizer as Core

    if vocab < 256 + len(special):
        raise UserError(
            f"vocab={vocab} is below 256 bytes + {len(special)} special tokens; "
            f"choose at least {256 + len(special)}"
        )
    core = Core(models.BPE())
    digits = pre_tokenizers.Split(Regex(r"\p{N}{1,3}"), "isolated")
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [digits, pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        min_frequency=2,
        special_tokens=list(special),
        initial_alphabet=sorted(_byte_of_character()),
        show_progress=False,
    )
    core.train_from_iterator(texts, trainer)
    return _wrap(core.to_str(), (END, *special), "the trained tokenizer")


def token_bytes(tokenizer: Tokenizer) -> np.ndarray:
    """Return int32 [V]: the UTF-8 bytes of text each id stands for, 0 for special tokens."""
    sizes = np.array([len(piece) for piece in tokenizer.pieces], np.int32)
    sizes[list(tokenizer._added)] = 0
    return sizes


class StreamDecoder:
    """Turns ids into text as they come, holding back the bytes of an unfinished character."""

    def __init__(self, tokenizer: Tokenizer):
        self._pieces = tokenizer.pieces
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token: int) -> str:
        """Return what can be printed after one more id; may be empty."""
        return self._utf8.decode(self._pieces[token])

    def finish(self) -> str:
        """Return what was held back (U+FFFD if the text stops inside a character)."""
        return self._utf8.decode(b"", final=True)


def _wrap(source: str, end_names: tuple[str, ...], what: str) -> Tokenizer:
    from tokenizers import Tokenizer as Core

    description = json.loads(source)
    for token in description["added_tokens"]:
        token["special"] = True
    try:
        core = Core.from_str(json.dumps(description))
    except Exception as error:  # the library raises no narrower type
        raise UserError(f"{what} cannot be built from its tokenizer.json ({error})") from error
    core.no_padding()
    core.no_truncation()
    core.encode_special_tokens = True
    ids = core.get_vocab(with_added_tokens=True)

    def find(names: tuple[str, ...]) -> int | None:
        return next((ids[name] for name in names if name in ids), None)

    end = find(end_names)
    if end is None:
        raise UserError(f"{what} has no end token among {', '.join(end_names)}; name it with end=")
    others = {f"{k}_id": find(v) for k, v in _NAMES.items() if k != "end"}
    return Tokenizer(source=source, core=core, vocab=max(ids.values()) + 1, end_id=end, **others)


def _is_byte_level(decoder: dict | None) -> bool:
    parts = [decoder] if decoder else []
    parts += decoder.get("decoders", []) if decoder else []
    return any(part["type"] == "ByteLevel" for part in parts)


def _byte_of_character() -> dict[str, int]:
    """Return the byte that each of byte-level BPE's 256 printable stand-in characters means."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [b for b in range(256) if b not in printable]
    stand_ins = printable + [256 + i for i in range(len(hidden))]
    return {chr(c): b for c, b in zip(stand_ins, printable + hidden, strict=True)}
