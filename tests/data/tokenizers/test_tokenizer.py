"""A tokenizer loses nothing: text round-trips, and the ids' byte counts add up to the text's."""

import gzip
import json
import os
import random
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsjax.data.tokenizers import long_words
from dsjax.data.tokenizers import tokenizer as tok
from dsjax.errors import UserError

TEXTS = [
    "To be, or not to be: that is the question.\n" * 5,
    "caf\u00e9 na\u00efve \u00fcber \u4f60\u597d\u4e16\u754c \U0001f409 12345 67\r\n\t  end " * 3,
]
BPE = tok.train_bpe(TEXTS, 300)
AWKWARD = "\x00\x7f \u00ad\u0301e\u0301 <|end_of_text|> <think>\ufeff\u2581\u0120\u200d\U0001f469"


@settings(deadline=None, max_examples=200)
@given(st.text())
def test_every_string_round_trips_and_its_bytes_are_counted(text):
    ids = BPE.encode(text)
    assert BPE.decode(ids) == text
    assert tok.token_bytes(BPE)[ids].sum() == len(text.encode())


@settings(deadline=None, max_examples=100)
@given(st.lists(st.integers(0, BPE.vocab - 1)))
def test_streamed_text_is_the_decoded_text_even_of_broken_bytes(ids):
    decoder = tok.StreamDecoder(BPE)
    assert "".join([decoder.push(i) for i in ids] + [decoder.finish()]) == BPE.decode(ids)


def test_the_stream_never_shows_half_a_character():
    decoder = tok.StreamDecoder(BPE)
    lone_bytes = {piece: i for i, piece in enumerate(BPE.pieces) if len(piece) == 1}
    shown = [decoder.push(lone_bytes[bytes([b])]) for b in "a\U0001f409b".encode()]
    assert shown == ["a", "", "", "", "\U0001f409", "b"]
    assert decoder.finish() == ""


def test_decoding_agrees_with_the_library():
    for text in [*TEXTS, AWKWARD]:
        ids = BPE.encode(text)
        assert BPE.core.decode(ids, skip_special_tokens=False) == BPE.decode(ids) == text


def test_half_of_a_surrogate_pair_is_refused():
    for encode in (BPE.encode, BPE.prompt, lambda text: BPE.encode_batch([text])):
        with pytest.raises(UserError, match="half of a surrogate pair"):
            encode("a\ud83db")


def test_a_document_cannot_forge_a_special_token():
    text = f"one{tok.END}two"
    assert BPE.end_id not in BPE.encode(text)
    ids = BPE.encode(text, special=True)
    assert ids == [*BPE.encode("one"), BPE.end_id, *BPE.encode("two")]
    assert BPE.decode(ids) == text
    assert tok.token_bytes(BPE)[BPE.end_id] == 0
    assert BPE.encode_batch([text, "", "two"]) == [BPE.encode(t) for t in (text, "", "two")]


def test_special_ids_come_first_and_the_vocabulary_is_as_asked():
    big = tok.train_bpe(["".join(chr(97 + i * j % 26) for j in range(99)) for i in range(30)], 270)
    assert big.vocab == 270 == len(tok.token_bytes(big))
    ids = (big.end_id, big.fim_begin_id, big.fim_hole_id, big.fim_end_id)
    assert ids == (0, 1, 2, 3)
    assert big.begin_id is None


def test_numbers_are_split_into_three_digits_at_most():
    many = tok.train_bpe(["123456 " * 50], 280)
    assert [many.decode([i]) for i in many.encode("123456")] == ["123", "456"]


def test_saved_and_loaded_tokenizers_are_the_same(tmp_path):
    for name in ("tokenizer.json", "tokenizer.json.gz"):
        BPE.save(tmp_path / name)
        again = tok.load(tmp_path / name)
        assert again.encode(AWKWARD) == BPE.encode(AWKWARD)
        assert again.fingerprint == BPE.fingerprint
        assert (again.vocab, again.end_id) == (BPE.vocab, BPE.end_id)
    assert tok.train_bpe(TEXTS, 299).fingerprint != BPE.fingerprint
    assert sorted(p.name for p in tmp_path.iterdir()) == ["tokenizer.json", "tokenizer.json.gz"]


def test_training_gives_the_same_ids_in_another_process_with_another_thread_count():
    program = (
        "from dsjax.data import sources; from dsjax.data.tokenizers import tokenizer as t\n"
        "print(t.train_bpe([w[:20000] for w in sources.shakespeare()], 600).fingerprint)"
    )
    runs = [
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "RAYON_NUM_THREADS": threads, "PYTHONHASHSEED": threads},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for threads in ("1", "2")
    ]
    assert runs[0] == runs[1] != ""


def test_bad_tokenizer_files_are_refused_by_name(tmp_path):
    with pytest.raises(UserError, match=r"nowhere\.json is missing"):
        tok.load(tmp_path / "nowhere.json")
    path = tmp_path / "broken.json.gz"
    path.write_bytes(gzip.compress(b"{}" * 999)[:20])
    with pytest.raises(UserError, match=r"broken\.json\.gz cannot be read"):
        tok.load(path)
    description = json.loads(BPE.source)
    path = tmp_path / "other.json"
    path.write_text(json.dumps({**description, "decoder": {"type": "Metaspace"}}))
    with pytest.raises(UserError, match="not a byte-level BPE"):
        tok.load(path)
    path.write_text(json.dumps({**description, "model": {"type": "BPE"}}))
    with pytest.raises(UserError, match=r"other\.json has nothing where model\.vocab"):
        tok.load(path)
    BPE.save(path)
    with pytest.raises(UserError, match="no token 'nope'"):
        tok.load(path, end="nope")
    with pytest.raises(UserError, match="choose at least 260"):
        tok.train_bpe(TEXTS, 259)


def test_deepseek_tokenizer_round_trips():
    path = os.environ.get("DSJAX_DEEPSEEK_TOKENIZER")
    if not path:
        pytest.skip("DSJAX_DEEPSEEK_TOKENIZER names no file")
    deepseek = tok.load(path)
    sizes = tok.token_bytes(deepseek)
    assert (deepseek.begin_id, deepseek.end_id, deepseek.vocab) == (0, 1, 128815)  # V3 config
    fim = (deepseek.fim_begin_id, deepseek.fim_hole_id, deepseek.fim_end_id)
    assert fim == (128801, 128800, 128802)
    for text in [*TEXTS, AWKWARD]:
        ids = deepseek.encode(text)
        assert deepseek.decode(ids) == text == deepseek.core.decode(ids)
        assert sizes[ids].sum() == len(text.encode())
    name = deepseek.pieces[128803].decode()
    assert deepseek.encode(name + "hi", special=True)[0] == 128803
    assert 128803 not in deepseek.encode(name + "hi")


def test_a_text_without_spaces_trains_in_time_and_other_text_trains_as_ever():
    draw = random.Random(3)
    letters = "".join(draw.choices("ACGT", k=300_000))  # minutes of time where it is one word
    dna = tok.train_bpe([letters], 600)
    assert dna.vocab == 600
    assert dna.decode(dna.encode(letters)) == letters
    for run in ("A" * 3000, "!" * 3000, " " * 3000, "\u4f60" * 3000, "a-b" * 2000 + "_" * 3000):
        pieces = list(long_words.cut([run, "word"]))
        assert "".join(pieces) == run + "word"
        assert len(pieces) > 2
    for text in TEXTS + ["a " * 3000, "word " + "b" * 1023, "1" * 3000, "a1" * 3000]:
        assert list(long_words.cut([text])) == [text]
