"""Chat templates are rendered as transformers renders them, whoever wrote them; needs transformers.

    DSJAX_CHAT_TEMPLATES=FOLDER python -m pytest tests/conformance/test_chat_templates.py

FOLDER holds templates as checkpoints keep them: *.jinja, tokenizer_config.json, or folders of such.
Beside a tokenizer_config.json, a tokenizer.json (or .json.gz) shows that ids are equal, too.
tests/serve/test_template.py holds what may be committed to what this comparison left.
"""

import gzip
import itertools
import json
import os
from pathlib import Path

import pytest
import tokenizers

from dsjax.data.tokenizers import tokenizer
from dsjax.serve.refusal import Refusal
from dsjax.serve.template import ChatTemplate
from tests.golden import make_chat

FOLDER = Path(os.environ.get("DSJAX_CHAT_TEMPLATES", "/nowhere"))
FOUND = sorted(itertools.chain(FOLDER.rglob("*.jinja"), FOLDER.rglob("*tokenizer_config.json")))
pytestmark = pytest.mark.filterwarnings("ignore")  # transformers' own


@pytest.mark.skipif(not FOUND, reason="DSJAX_CHAT_TEMPLATES names no folder of chat templates")
@pytest.mark.parametrize("path", FOUND, ids=str)
def test_a_template_is_rendered_as_transformers_does(path, tmp_path):
    pytest.importorskip("transformers", reason="needs pip install .[conformance]")
    source = path.read_text(encoding="utf-8-sig")
    if path.suffix == ".json":
        source = json.loads(source)["chat_template"]
    words = words_beside(path, tmp_path)
    ours = ChatTemplate(source, make_chat.NAMES,
                        words or tokenizer.train_bpe(["To be, or not to be"], 266))
    compared = 0
    for messages, kwargs in itertools.product(make_chat.CONVERSATIONS, make_chat.FLAGS):
        theirs = make_chat.rendered(source, messages, kwargs)
        if theirs is None:
            with pytest.raises(Refusal):
                ours.render(messages, kwargs)
            continue
        assert ours.render(messages, kwargs) == theirs, (messages, kwargs)
        compared += 1
        if words and "\uff5c" not in str(messages):  # a message's marks are plain text to us alone
            plain = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
            ids = plain.encode(theirs, add_special_tokens=False).ids
            assert ours.prompt(messages, kwargs).ids == ids
    if not compared:
        pytest.skip("both refuse every conversation: the template asks for other fields")


def words_beside(path, scratch):
    """The tokenizer beside a settings file, also under the same prefix and compressed."""
    if path.suffix != ".json":
        return None
    for beside in (path.with_name(path.name.replace("_config.json", ".json")),
                   path.with_name(path.name.replace("_config.json", ".json.gz"))):
        if beside.is_file():
            raw = beside.read_bytes()
            unpacked = gzip.decompress(raw) if beside.suffix == ".gz" else raw
            (scratch / "tokenizer.json").write_bytes(unpacked)
            return tokenizer.load(scratch / "tokenizer.json")
    return None
