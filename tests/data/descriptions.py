"""A small byte-level tokenizer.json to change, and files beside it."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dsjax.data.tokenizers import tokenizer as tok

TEXTS = [
    "To be, or not to be: that is the question.\n" * 5,
    "caf\u00e9 na\u00efve \u00fcber \u4f60\u597d\u4e16\u754c \U0001f409 12345 67\r\n\t  end " * 3,
]
BPE = tok.train_bpe(TEXTS, 300)
AWKWARD = "\x00\x7f \u00ad\u0301e\u0301 <|end_of_text|> <think>\ufeff\u2581\u0120\u200d\U0001f469"
Description = dict[str, Any]
LLAMA = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+"
         r"[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")


def changed(change: Callable[[Description], object]) -> Description:
    """The description of the small tokenizer after a change in place."""
    description = copy.deepcopy(json.loads(BPE.source))
    change(description)
    return description


def renamed(*names: str) -> Description:
    """The small tokenizer with other names for its first added tokens."""
    description = json.loads(BPE.source)
    for token, name in zip(description["added_tokens"], names, strict=False):
        vocab = description["model"]["vocab"]
        vocab[name] = vocab.pop(token["content"])
        token["content"] = name
    return description


def split(pattern: str, **more: Any) -> Description:
    """A Split step."""
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated",
            "invert": False, **more}


def cuts(*steps: Description, **bytes_step: Any) -> Description:
    """A pre-tokenizer of steps that ends in ByteLevel."""
    last = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True,
            "use_regex": False, **bytes_step}
    return {"type": "Sequence", "pretokenizers": [*steps, last]}


def written(folder: Path, description: Any, name: str = "tokenizer.json", **beside: Any) -> Path:
    """A tokenizer file in a folder, with others beside it: `config={...}` is config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    text = description if isinstance(description, str) else json.dumps(description)
    path.write_text(text, encoding="utf-8")
    for other, data in beside.items():
        (folder / f"{other}.json").write_text(json.dumps(data), encoding="utf-8")
    return path
