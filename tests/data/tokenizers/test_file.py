"""A tokenizer.json that is taken loses no text; one that would is refused by its setting's name."""

import gzip
import json

import pytest

from dsjax import disk
from dsjax.data.tokenizers import file, patterns
from dsjax.data.tokenizers import tokenizer as tok
from dsjax.errors import UserError
from tests.data.descriptions import AWKWARD, BPE, LLAMA, TEXTS, changed, cuts, split, written

TOKEN = {"id": 300, "content": "<x>", "single_word": False, "lstrip": False, "rstrip": False,
         "normalized": True, "special": False}
HARMLESS = {
    "padding and truncation": lambda d: d.update(
        truncation={"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0},
        padding={"strategy": {"Fixed": 9}, "direction": "Right", "pad_to_multiple_of": None,
                 "pad_id": 0, "pad_type_id": 0, "pad_token": "x"}),
    "unknown tokens": lambda d: d["model"].update(unk_token="nowhere", fuse_unk=True),
    "byte fallback": lambda d: d["model"].update(byte_fallback=True),
    "ignored merges, as Llama 3": lambda d: d["model"].update(ignore_merges=True),
    "dropout of nothing": lambda d: d["model"].update(dropout=0.0),
    "no type, as GPT-2": lambda d: d["model"].pop("type"),
    "no affixes, as GPT-2": lambda d: d["model"].update(end_of_word_suffix="",
                                                         continuing_subword_prefix=""),
    "no added tokens but the vocabulary's": lambda d: d.pop("added_tokens"),
    "merges as pairs": lambda d: d["model"].update(
        merges=[m if isinstance(m, list) else m.split(" ") for m in d["model"]["merges"]]),
    "an empty normalizer, as DeepSeek": lambda d: d.update(
        normalizer={"type": "Sequence", "normalizers": []}),
    "Llama 3's pattern": lambda d: d.update(pre_tokenizer=cuts(split(LLAMA))),
    "single digits, as DeepSeek-V2": lambda d: d.update(pre_tokenizer=cuts(
        split(r"\s?\p{L}+"), split(r"\s?\p{P}+"), {"type": "Digits", "individual_digits": True})),
    "merged punctuation": lambda d: d.update(pre_tokenizer=cuts(
        {"type": "Punctuation", "behavior": "MergedWithNext"}, use_regex=True)),
    "a Fuse beside the decoder": lambda d: d.update(
        decoder={"type": "Sequence", "decoders": [d["decoder"], {"type": "Fuse"}]}),
    "words that are no bytes": lambda d: d["model"]["vocab"].update({"\uff5cx\u2581\uff5c": 300}),
    "without the bytes that UTF-8 has not": lambda d: [
        d["model"]["vocab"].pop(chr(b)) for b in (0xC0, 0xC1, 0xF5, 0xFF)],
    "added tokens that eat spaces": lambda d: d["added_tokens"].append(
        TOKEN | {"lstrip": True, "rstrip": True}),
    "a begin token after the text": lambda d: d.update(post_processor={
        "type": "TemplateProcessing", "pair": [],
        "single": [{"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {
            "id": "a", "type_id": 0}}], "special_tokens": {
            "a": {"id": "a", "ids": [3], "tokens": ["a"]}}}),
}
CHANGING = {
    "no alphabet": (lambda d: [d["model"]["vocab"].pop(chr(b)) for b in range(33, 127)],
                    "lacks the bytes 0x21.*89 more"),
    "a missing byte": (lambda d: d["model"]["vocab"].pop("\u010d"), "lacks the bytes 0x0d"),
    "no ByteLevel": (lambda d: d.update(pre_tokenizer=None), "0 ByteLevel"),
    "two ByteLevels": (lambda d: d.update(pre_tokenizer=cuts(d["pre_tokenizer"])), "2 ByteLevel"),
    "a space before": (lambda d: d.update(pre_tokenizer=cuts(add_prefix_space=True)),
                       "add_prefix_space"),
    "text taken away": (lambda d: d.update(pre_tokenizer=cuts(split(" ", behavior="Removed"))),
                        "behavior 'Removed'"),
    "punctuation taken away": (lambda d: d.update(pre_tokenizer=cuts(
        {"type": "Punctuation", "behavior": "Removed"})), "behavior 'Removed'"),
    "words only": (lambda d: d.update(pre_tokenizer=cuts({"type": "WhitespaceSplit"})),
                   "pre-tokenizer WhitespaceSplit"),
    "chance": (lambda d: d["model"].update(dropout=0.1), "dropout 0.1"),
    "a prefix of parts": (lambda d: d["model"].update(continuing_subword_prefix="##"),
                          "continuing_subword_prefix"),
    "a suffix of words": (lambda d: d["model"].update(end_of_word_suffix="</w>"),
                          "end_of_word_suffix"),
    "a decoder that strips": (lambda d: d.update(decoder={"type": "Sequence", "decoders": [
        d["decoder"], {"type": "Strip", "content": " ", "start": 1, "stop": 0}]}), "decoder Strip"),
    **{f"the normalizer {kind}": (
        lambda d, kind=kind: d.update(normalizer={"type": "Sequence", "normalizers": [
            {"type": "NFC"}, {"type": kind}]}), f"normalizer {kind}")
        for kind in ("Lowercase", "NFKC", "NFD", "Strip", "Replace", "Prepend", "ByteLevel")},
}


@pytest.mark.parametrize("setting", HARMLESS)
def test_harmless_settings_are_taken_and_no_text_is_lost(setting, tmp_path):
    words = tok.load(written(tmp_path, changed(HARMLESS[setting])))
    sizes = tok.token_bytes(words)
    for text in [*TEXTS, AWKWARD, "a <x> b"]:
        ids = words.encode(text)
        assert words.decode(ids) == text
        assert sizes[ids].sum() == len(text.encode())
        assert words.encode_batch([text]) == [ids]


@pytest.mark.parametrize("setting", CHANGING)
def test_settings_that_change_text_are_refused_by_name(setting, tmp_path):
    change, cause = CHANGING[setting]
    with pytest.raises(UserError, match=cause):
        tok.load(written(tmp_path, changed(change)))


def test_nfc_is_left_out_and_said_and_prompts_have_it(tmp_path):
    words = tok.load(written(tmp_path, changed(lambda d: d.update(normalizer={"type": "NFC"}))))
    assert "NFC, which is left out" in words.remarks[0]
    assert BPE.remarks == ()
    text = "e\u0301"
    assert words.decode(words.encode(text)) == text
    assert words.encode("caf\u00e9") == BPE.encode("caf\u00e9")
    assert words.prompt(text) == BPE.encode("\u00e9")


MALFORMED = {
    "nothing": "", "a list": "[]", "cut": BPE.source[:-9], "too deep": "[" * 100_000,
    "a model of text": changed(lambda d: d.update(model="BPE")),
    "a vocabulary list": changed(lambda d: d["model"].update(vocab=[["a", 1]])),
    "no vocabulary": changed(lambda d: d["model"].pop("vocab")),
    "merges of null": changed(lambda d: d["model"].update(merges=None)),
    "merges of three": changed(lambda d: d["model"]["merges"].append("a b c")),
    "merges of numbers": changed(lambda d: d["model"]["merges"].append([1, 2])),
    "merges of strangers": changed(lambda d: d["model"]["merges"].append("q zzzz")),
    "an id of text": changed(lambda d: d["model"]["vocab"].update(zz="7")),
    "an id of true": changed(lambda d: d["model"]["vocab"].update(zz=True)),
    "an id below 0": changed(lambda d: d["model"]["vocab"].update(zz=-1)),
    "a huge id": changed(lambda d: d["model"]["vocab"].update(zz=2**31)),
    "an id twice": changed(lambda d: d["model"]["vocab"].update(zz=9)),
    "a huge added id": changed(lambda d: d["added_tokens"].append(TOKEN | {"id": 2**40})),
    "an added id too far": changed(lambda d: d["added_tokens"].append(TOKEN | {"id": 999})),
    "an added id taken": changed(lambda d: d["added_tokens"].append(TOKEN | {"id": 9})),
    "an added name twice": changed(lambda d: d["added_tokens"][0].update(id=301)),
    "no added name": changed(lambda d: d["added_tokens"].append(TOKEN | {"content": ""})),
    "an added number": changed(lambda d: d["added_tokens"].append(7)),
    "added tokens null": changed(lambda d: d.update(added_tokens=None)),
    "lstrip of text": changed(lambda d: d["added_tokens"].append(TOKEN | {"lstrip": "no"})),
    "a decoder of text": changed(lambda d: d.update(decoder="ByteLevel")),
    "a decoder list": changed(lambda d: d.update(decoder=[1])),
    "a decoder of no type": changed(lambda d: d.update(decoder={"decoders": []})),
    "a sequence of null": changed(lambda d: d.update(decoder={"type": "Sequence",
                                                              "decoders": None})),
    "a pre-tokenizer of text": changed(lambda d: d.update(pre_tokenizer="ByteLevel")),
    "a normalizer of 7": changed(lambda d: d.update(normalizer=7)),
    "a million steps": changed(lambda d: d.update(pre_tokenizer=cuts(*[split("a")] * 99))),
    "a pattern of number": changed(
        lambda d: d.update(pre_tokenizer=cuts(split("a") | {"pattern": 1}))),
    "half a pattern": changed(lambda d: d.update(pre_tokenizer=cuts(split("(a")))),
}


@pytest.mark.parametrize("fault", MALFORMED)
def test_malformed_files_get_a_sentence(fault, tmp_path):
    with pytest.raises(UserError, match=r"tokenizer\.json .*(;|:) "):
        tok.load(written(tmp_path, MALFORMED[fault]))


def test_files_that_unpack_without_end_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(disk, "LIMIT", 2**20)
    path = tmp_path / "tokenizer.json.gz"
    path.write_bytes(gzip.compress(bytes(2**21)))
    with pytest.raises(UserError, match="unpacks to more than the 1,048,576 bytes"):
        tok.load(path)


TAKEN = [
    LLAMA,
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s+$",
    r"[\p{Han}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{M}&&[^\p{Han}]]*[\p{Ll}\p{M}&&[^\p{Han}]]+(?i:'s|'t)?",
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+""",
    r"\d{1,3}(?=(?:\d{3})*\b)",
    r" ?[^(\s|[.,!?\u2026])]+",
]
BOMBS = [
    "(x+x+)+y", "(a|a)*b", "(a|b|ab)*c", "(a?){30}a{30}", "a?" * 30 + "a" * 30, r"(a+)\1",
    r"(?<n>a)\g<n>", "(?:(?:a*)*)*b", "((a{999}){999}){999}", "a{99999999999999999999}",
    "(" * 999 + ")" * 999, "a*" * 4 + "b", "(?>(a+)+)b", "(a|a)" * 30 + "b", "(.*)*", "x" * 20_000,
]


def test_patterns_of_released_tokenizers_are_taken_and_bombs_are_not(tmp_path):
    assert [patterns.refusal(pattern) for pattern in TAKEN] == [None] * len(TAKEN)
    assert None not in [patterns.refusal(pattern) for pattern in BOMBS]
    bomb = changed(lambda d: d.update(pre_tokenizer=cuts(split(BOMBS[0]))))
    with pytest.raises(UserError, match=r"\(x\+x\+\)\+y.* hours"):
        tok.load(written(tmp_path, bomb))


def test_a_pattern_that_is_slow_for_a_line_is_found_by_trying(tmp_path):
    slow = changed(lambda d: d.update(pre_tokenizer=cuts(split(r"a*a*a*\d"))))
    with pytest.raises(UserError, match=r"1,000 characters of 'a'|gave up"):
        tok.load(written(tmp_path, slow))


def test_a_panic_of_the_library_is_a_sentence_and_an_interrupt_is_not():
    panic = type("PanicException", (BaseException,), {})

    def fail(error):
        raise error

    with pytest.raises(UserError, match=r"it cannot be used: the library gave up \(odd"):
        file.guarded(lambda: fail(panic("odd")), "it")
    with pytest.raises(KeyboardInterrupt):
        file.guarded(lambda: fail(KeyboardInterrupt()), "it")


def test_the_fingerprint_is_of_all_that_changes_ids_and_of_nothing_else(tmp_path):
    def fingerprint(change):
        return tok.load(written(tmp_path, changed(change))).fingerprint

    same = ["padding and truncation", "merges as pairs", "an empty normalizer, as DeepSeek",
            "no affixes, as GPT-2", "a Fuse beside the decoder", "dropout of nothing"]
    assert {fingerprint(HARMLESS[name]) for name in same} == {BPE.fingerprint}
    other = [
        lambda d: d.update(normalizer={"type": "NFC"}),
        lambda d: d.update(pre_tokenizer=cuts(split(LLAMA))),
        lambda d: d.update(pre_tokenizer=cuts(split(r"\p{N}{1,3}"), use_regex=True, )),
        lambda d: d.update(pre_tokenizer=cuts(split(LLAMA, behavior="MergedWithNext"))),
        lambda d: d["model"]["merges"].pop(),
        lambda d: d["model"]["merges"].reverse(),
        lambda d: d["model"].update(ignore_merges=True),
        lambda d: d["added_tokens"].append(TOKEN),
        lambda d: d["added_tokens"].append(TOKEN | {"rstrip": True}),
    ]
    found = [fingerprint(change) for change in other]
    assert found[2] == BPE.fingerprint  # the same steps, said otherwise
    assert len({*found, BPE.fingerprint}) == len(other)


def test_fingerprints_of_earlier_versions_are_known():
    description = json.loads(BPE.source)
    ids = sorted((i, name) for name, i in BPE.core.get_vocab(True).items())
    old = tok._digest([ids, file.merges(description)])
    assert old != BPE.fingerprint
    assert BPE.has_fingerprint(old)
    assert BPE.has_fingerprint(BPE.fingerprint)
    assert not BPE.has_fingerprint("0" * 16)
