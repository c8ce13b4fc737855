"""Byte-level BPE tokenizers: load any, train one, and know how many bytes each id stands for.

The V3 tokenizer is a byte-level BPE of 128K ids (V3 section 4.1); every string is representable and
`decode(encode(text)) == text`. Bits per byte, the unit in which the report compares models with
different tokenizers (V3 section 4.4), needs the byte count of each id: `token_bytes`.

Limits: byte-level BPE only (DeepSeek, GPT-2, Llama 3, Qwen); SentencePiece-style files are refused,
and so is a file that would change or lose text (`file`).
Names of added tokens (`<|end_of_text|>`, DeepSeek's roles) written out in a text are plain text to
`encode`, so that no document can forge the end of another or a role; `encode(text, special=True)`
turns them into their ids, for FIM documents, and `prompt` does all that the file says.
Axis: V vocabulary.
"""

import codecs
import dataclasses
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from dsjax.data.tokenizers import file, long_words
from dsjax.data.tokenizers import settings as tokenizer_settings
from dsjax.data.tokenizers.settings import Settings
from dsjax.errors import UserError

Returned = TypeVar("Returned")
if TYPE_CHECKING:  # the library costs import time, so it is loaded where it is used
    import tokenizers

END, FIM_BEGIN, FIM_HOLE, FIM_END = (
    tokenizer_settings.END,
    tokenizer_settings.FIM_BEGIN,
    tokenizer_settings.FIM_HOLE,
    tokenizer_settings.FIM_END,
)
SPECIAL = (END, FIM_BEGIN, FIM_HOLE, FIM_END)
SMALLEST = 256 + len(SPECIAL)  # ids of a BPE that is trained


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
    end_ids: tuple[int, ...]
    """All ids that end a text that is generated; `end_id`, which ends documents, is the first."""
    settings: Settings
    remarks: tuple[str, ...] = ()
    """Sentences for the user: what of the file was left out."""

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        """Return the ids of `text`; with `special`, names of added tokens become their ids."""
        if not special:
            return self._guarded(lambda: self.core.encode(text, add_special_tokens=False).ids)
        ids: list[int] = []
        for i, piece in enumerate(self._added_names.split(text)):  # odd pieces are names
            ids += [self._id_of[piece]] if i % 2 else self.encode(piece)
        return ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of each text, on all cores."""
        batch = self._guarded(
            lambda: self.core.encode_batch_fast(list(texts), add_special_tokens=False)
        )
        return [encoding.ids for encoding in batch]

    def prompt(self, text: str, *, is_begun: bool | None = None) -> list[int]:
        """Return the ids of a prompt as transformers' AutoTokenizer gives them for these files.

        Names of added tokens become their ids, the normalizer works, and the begin and end tokens
        that the files ask for are put around. With `is_begun` the begin token stands before the
        text (True) or nothing is put around it (False), whatever the files ask for.
        """
        tokens = self.settings.tokens
        is_said = is_begun is None and ("add_bos_token" in tokens or "add_eos_token" in tokens)
        own = is_begun is None and not is_said  # the post-processor inside tokenizer.json decides
        # A batch, though of one: the library lets other threads run meanwhile.
        (encoding,) = self._guarded(
            lambda: self._as_it_says.encode_batch([text], add_special_tokens=own))
        ids = encoding.ids
        if is_begun or (is_said and tokens.get("add_bos_token") and tokens.get("bos_token")):
            if self.begin_id is None:
                raise UserError("the tokenizer has no begin token that its files name; leave it "
                                "out with --bos no")
            ids = [self.begin_id, *ids]
        if is_said and tokens.get("add_eos_token") and tokens.get("eos_token"):
            ids = [*ids, self.core.get_vocab()[tokens["eos_token"]]]
        if any(i >= self.vocab for i in ids):
            raise UserError(f"the tokenizer's post_processor puts the id {max(ids)} around a "
                            f"prompt, which is outside its vocabulary of {self.vocab:,}; give "
                            "--bos no, or mend tokenizer.json")
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of `ids`, special ones by name; bytes that are not UTF-8 give U+FFFD."""
        pieces = [self.pieces[i] for i in ids]
        return b"".join(pieces).decode("utf-8", errors="replace")

    def save(self, path: str | Path) -> None:
        """Write tokenizer.json (gzipped when the name ends in .gz), whole or not at all.

        Beside it go the settings that it needs to be read again as it is (`settings.save`).
        """
        files = self.settings.files(self.end_ids)
        tokenizer_settings.save(Path(path), self.source, files)

    @cached_property
    def pieces(self) -> tuple[bytes, ...]:
        """The bytes that each id decodes to [V]; those of its name where that is no text."""
        table, silent = _byte_of_character(), set(self.silent_ids)
        found = [b""] * self.vocab
        for name, i in self.core.get_vocab(with_added_tokens=True).items():
            is_text = i not in silent and all(c in table for c in name)
            found[i] = bytes(table[c] for c in name) if is_text else name.encode()
        return tuple(found)

    @cached_property
    def fingerprint(self) -> str:
        """Sixteen hex digits that change with whatever changes ids, whatever library wrote it."""
        description = json.loads(self.source)
        return _digest([self._ids, *file.identity(description)])

    def has_fingerprint(self, fingerprint: str) -> bool:
        """Tell whether a kept fingerprint is this tokenizer's.

        One of earlier versions, which counted ids and merges only, is known too.
        """
        if fingerprint == self.fingerprint:
            return True
        merges = file.merges(json.loads(self.source))
        return fingerprint == _digest([self._ids, merges])

    @cached_property
    def silent_ids(self) -> tuple[int, ...]:
        """Ids that stand for no text: added tokens and ends, but for those that text can reach."""
        ids = {*self._added, self.end_id, *self.end_ids}
        ids |= {i for i in (self.begin_id, self.fim_begin_id, self.fim_hole_id, self.fim_end_id)
                if i is not None}
        names = {i: self.core.id_to_token(i) or "" for i in ids}
        reached = _reached(self.core, json.loads(self.source), list(names.values()))
        return tuple(sorted(i for i, name in names.items() if name and name not in reached))

    @property
    def _ids(self) -> list[tuple[int, str]]:
        return sorted((i, name) for name, i in self.core.get_vocab(True).items())

    @cached_property
    def _added(self) -> dict[int, str]:
        return {i: token.content for i, token in self.core.get_added_tokens_decoder().items()}

    @cached_property
    def _id_of(self) -> dict[str, int]:
        return {name: i for i, name in self._added.items()}

    @cached_property
    def _added_names(self) -> re.Pattern:
        longest_first = sorted(self._added.values(), key=len, reverse=True)
        return re.compile(f"({'|'.join(map(re.escape, longest_first))})" if longest_first else "$^")

    @cached_property
    def _as_it_says(self) -> "tokenizers.Tokenizer":
        """The library's tokenizer with all that the file says, for prompts."""
        description = json.loads(self.source)
        description["model"].setdefault("type", "BPE")
        core = file.build(description | {"padding": None, "truncation": None},
                                    "the tokenizer")
        named = [self.settings.tokens.get(name) for name in ("bos_token", "eos_token")]
        core.add_special_tokens([name for name in named if name])
        return core

    def _guarded(self, call: Callable[[], Returned]) -> Returned:
        try:
            return file.guarded(call, "the tokenizer")
        except TypeError:  # what the library says of a str that is no Unicode
            raise UserError("a text holds half of a surrogate pair, which is no character; take "
                            "it out") from None


def load(path: str | Path, *, end: str | None = None) -> Tokenizer:
    """Read a byte-level tokenizer.json or tokenizer.json.gz and what lies beside it.

    end: the name of the end token, where no file says it or another is wanted.
    """
    path = Path(path)
    what = f"tokenizer {path}"
    source = file.read(path)
    description = file.parse(source, what)
    words = set(description["model"]["vocab"])
    words |= {token["content"] for token in description["added_tokens"]}
    return _made(source, description, what, tokenizer_settings.read(path, words), end)


def train_bpe(texts: Iterable[str], vocab: int, special: tuple[str, ...] = SPECIAL) -> Tokenizer:
    """Train a byte-level BPE of `vocab` ids, special ones first; equal texts give equal ids.

    Splits numbers as V3's tokenizer does (three digits at most), the rest as GPT-2's. A text with
    too few pairs that occur twice gives a smaller vocabulary, and a remark.
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
    core.train_from_iterator(long_words.cut(texts), trainer)
    source, what = core.to_str(), "the trained tokenizer"
    end = special[0] if special and END not in special else None
    made = _made(source, file.parse(source, what), what, Settings(), end)
    if made.vocab == vocab:
        return made
    few = f"the text is too short for {vocab:,} ids: it gives a tokenizer of {made.vocab:,} ids"
    return dataclasses.replace(made, remarks=(*made.remarks, few))


def token_bytes(tokenizer: Tokenizer) -> np.ndarray:
    """Return int32 [V]: the UTF-8 bytes of text each id stands for, 0 for those of no text."""
    sizes = np.array([len(piece) for piece in tokenizer.pieces], np.int32)
    sizes[list(tokenizer.silent_ids)] = 0
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


def _made(source: str, description: dict[str, Any], what: str, settings: Settings,
          end: str | None) -> Tokenizer:
    core, remarks = file.lossless(description, _byte_of_character(), what)
    ids = core.get_vocab(with_added_tokens=True)
    vocab = max(ids.values()) + 1

    def find(names: Iterable[str]) -> int | None:
        return next((ids[name] for name in names if name in ids), None)

    there = set(ids.values())
    more = tuple(i for i in settings.end_ids if i in there)
    names = {i: core.id_to_token(i) or "" for i in more}
    words = _reached(core, description, list(names.values()))
    ends = [i for i in more if names[i] not in words]
    end_id = tokenizer_settings.end_id(ids, settings, ends, end, what)
    if end is not None:
        settings = dataclasses.replace(settings, tokens={**settings.tokens, "eos_token": end})
    begin = settings.tokens.get("bos_token", tokenizer_settings.NAMES["begin"])
    made = Tokenizer(
        source=source,
        core=core,
        vocab=vocab,
        end_id=end_id,
        begin_id=find([begin] if isinstance(begin, str) else begin or ()),
        **{f"{k}_id": find(v) for k, v in tokenizer_settings.NAMES.items() if k.startswith("fim")},
        end_ids=tuple(dict.fromkeys((end_id, *more))),
        settings=settings,
        remarks=remarks,
    )
    name = core.id_to_token(end_id) or ""
    if _reached(core, description, [name]):
        raise UserError(f"{what} has the end token {name!r}, which is a word that text can hold; "
                        f"name another: {tokenizer_settings.FLAG}")
    return made


def _reached(core: "tokenizers.Tokenizer", description: dict[str, Any],
             names: list[str]) -> set[str]:
    """Return those of `names` that plain text can turn into: by merges, as one byte, or whole."""
    words = description["model"]["vocab"]
    table = _byte_of_character()
    inside = [name for name in names if name in words and all(c in table for c in name)]
    if not inside:
        return set()
    joined = {left + right for left, right in file.merges(description)}
    texts = [bytes(table[c] for c in name).decode(errors="replace") for name in inside]
    return {
        name
        for name, text in zip(inside, texts, strict=True)
        if len(name) == 1
        or name in joined
        or core.encode(text, add_special_tokens=False).ids == [words[name]]
    }


def _digest(of: object) -> str:
    return hashlib.sha256(json.dumps(of).encode()).hexdigest()[:16]


def _byte_of_character() -> dict[str, int]:
    """Return the byte that each of byte-level BPE's 256 printable stand-in characters means."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [b for b in range(256) if b not in printable]
    stand_ins = printable + [256 + i for i in range(len(hidden))]
    return {chr(c): b for c, b in zip(stand_ins, printable + hidden, strict=True)}
