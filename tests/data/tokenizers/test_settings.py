"""Begin and end tokens are those that the files of a tokenizer name, and survive being saved."""

import json

import pytest
from tokenizers import Tokenizer as Library
from tokenizers import processors

from dsjax.data.tokenizers import tokenizer as tok
from dsjax.errors import UserError
from tests.data.descriptions import (
    AWKWARD,
    BPE,
    LLAMA,
    TEXTS,
    changed,
    cuts,
    renamed,
    split,
    written,
)

NAMES = ("[GO]", "[STOP]", "[PAUSE]", "[ROLE]")


def given(folder, **beside):
    """A tokenizer of four added tokens of unusual names, ids 0 to 3, and files beside it."""
    return written(folder, renamed(*NAMES), **beside)


def template(*names):
    """A post-processor that puts names around a text, as released tokenizers have it."""
    core = Library.from_str(json.dumps(renamed(*NAMES)))
    core.post_processor = processors.Sequence([
        processors.ByteLevel(trim_offsets=False),
        processors.TemplateProcessing(
            single=[*names[:1], "$A", *names[1:]], pair=[*names[:1], "$A", *names[1:], "$B"],
            special_tokens=[(n, NAMES.index(n)) for n in names])])
    return json.loads(core.to_str())


def test_an_end_token_is_found_by_every_file_that_names_it(tmp_path):
    settings = {"eos_token": "[STOP]"}
    as_object = {"eos_token": {"__type": "AddedToken", "content": "[STOP]", "lstrip": False}}
    for number, beside in enumerate([
        {"tokenizer_config": settings}, {"tokenizer_config": as_object},
        {"generation_config": {"eos_token_id": 1}}, {"generation_config": {"eos_token_id": [1]}},
        {"config": {"model_type": "deepseek_v3", "eos_token_id": 1}},
        {"config": {"eos_token_id": 2}, "generation_config": {"eos_token_id": 1}},
        {"generation_config": {"eos_token_id": [9999, 1]}},
        {"generation_config": {"eos_token_id": [40, 1]}},  # 40 is a word of text
    ]):
        words = tok.load(given(tmp_path / str(number), **beside))
        assert words.end_id == 1
        assert tok.token_bytes(words)[1] == 0
        assert words.end_ids[0] == 1
    with pytest.raises(UserError, match=r"no end token.*--end-token NAME.*--data\.end-token"):
        tok.load(given(tmp_path / "none"))
    assert tok.load(given(tmp_path / "none"), end="[PAUSE]").end_id == 2
    with pytest.raises(UserError, match=r"no token 'nope'.*--end-token"):
        tok.load(given(tmp_path / "none"), end="nope")


def test_several_ends_all_end_a_text_and_the_first_stands_between_documents(tmp_path):
    beside = {"generation_config": {"eos_token_id": [2, 1, 3]},
              "tokenizer_config": {"eos_token": "[STOP]"}}
    words = tok.load(given(tmp_path, **beside))
    assert (words.end_id, words.end_ids) == (1, (1, 2, 3))
    assert tok.token_bytes(words)[[0, 1, 2, 3]].tolist() == [0, 0, 0, 0]


def test_an_end_counts_no_text_where_nothing_marks_it_special(tmp_path):
    plain = renamed(*NAMES)
    plain["added_tokens"] = [t | {"special": False} for t in plain["added_tokens"]]
    beside = {"tokenizer_config": {"eos_token": "[STOP]"}}
    assert tok.token_bytes(tok.load(written(tmp_path / "a", plain, **beside)))[1] == 0
    plain["added_tokens"] = []
    words = tok.load(written(tmp_path / "b", plain, **beside))
    assert tok.token_bytes(words)[1] == 0
    assert 1 not in words.encode("a[STOP]b")
    assert words.decode([1]) == "[STOP]"


def test_an_added_token_that_text_reaches_is_text_and_cannot_be_the_end(tmp_path):
    word = max((n for n in BPE.core.get_vocab() if n[0] == "\u0120"), key=len)  # with a space
    text, number = " " + word[1:], BPE.core.token_to_id(word)
    token = {"id": number, "content": word, "single_word": False, "lstrip": False,
             "rstrip": False, "normalized": True, "special": False}
    path = written(tmp_path, changed(lambda d: d["added_tokens"].append(token)))
    words = tok.load(path)
    assert words.encode(text) == [number]
    assert words.decode([number]) == text
    assert tok.token_bytes(words)[number] == len(text)
    with pytest.raises(UserError, match=r"end token.*text can hold"):
        tok.load(path, end=word)


def test_what_the_files_say_is_kept_by_saving_and_nothing_of_another(tmp_path):
    beside = {"generation_config": {"eos_token_id": [2, 1], "top_p": 0.9},
              "tokenizer_config": {"eos_token": "[STOP]", "bos_token": "[GO]",
                                   "add_bos_token": True}}
    words = tok.load(given(tmp_path / "a", **beside))
    (tmp_path / "b").mkdir()
    for name in ("tokenizer.json", "tokenizer.json.gz", "my-tokenizer.json"):
        words.save(tmp_path / "b" / name)
        again = tok.load(tmp_path / "b" / name)
        assert (again.end_ids, again.begin_id) == (words.end_ids, words.begin_id) == ((1, 2), 0)
        assert again.prompt("to be") == words.prompt("to be") == [0, *words.encode("to be")]
    by_flag = tok.load(given(tmp_path / "c"), end="[PAUSE]")
    by_flag.save(tmp_path / "b/tokenizer.json")
    again = tok.load(tmp_path / "b/tokenizer.json")
    assert (again.end_ids, again.begin_id) == ((2,), None)
    ids_only = tok.load(given(tmp_path / "d", generation_config={"eos_token_id": 3}))
    ids_only.save(tmp_path / "other-tokenizer.json")
    assert tok.load(tmp_path / "other-tokenizer.json").end_ids == (3,)
    BPE.save(tmp_path / "a/tokenizer.json")  # over files of another tokenizer
    assert tok.load(tmp_path / "a/tokenizer.json").end_ids == BPE.end_ids
    kept = json.loads((tmp_path / "a/generation_config.json").read_text())
    assert kept == {"top_p": 0.9}


def test_a_converted_run_has_its_settings_in_released(tmp_path):
    run = tmp_path / "run"
    beside = {"tokenizer_config": {"eos_token": "[STOP]", "bos_token": "[GO]",
                                   "add_bos_token": True},
              "generation_config": {"eos_token_id": [1, 3]}}
    given(run / "released", **beside)
    (run / "config.json").write_text('{"model": {}}')
    words = tok.load(given(run))
    assert (words.end_ids, words.prompt("a")[0]) == ((1, 3), 0)
    written(run, changed(lambda d: d["model"]["merges"].pop()))
    assert tok.load(run / "tokenizer.json").end_ids == BPE.end_ids  # another tokenizer since


PROMPT = "to be[ROLE] caf\u00e9"


@pytest.mark.parametrize(("around", "settings", "expected"), [
    ((), {}, "{}"),
    (("[GO]",), {}, "<{}"),
    (("[GO]", "[STOP]"), {}, "<{}>"),
    (("[GO]",), {"bos_token": "[GO]"}, "<{}"),
    (("[GO]",), {"bos_token": "[GO]", "add_bos_token": False}, "{}"),
    ((), {"bos_token": "[GO]", "add_bos_token": True}, "<{}"),
    ((), {"bos_token": None, "add_bos_token": True}, "{}"),
    (("[GO]",), {"add_eos_token": True}, "{}>"),
    (("[GO]",), {"add_bos_token": None}, "{}"),
])
def test_prompts_are_what_transformers_makes_of_the_files(tmp_path, around, settings, expected):
    """As its tokenizer class: add_bos_token or add_eos_token in the config replace the template."""
    settings = {"eos_token": "[STOP]", **settings}
    path = written(tmp_path, template(*around), tokenizer_config=settings)
    words = tok.load(path)
    inside = [*words.encode("to be"), 3, *words.encode(" caf\u00e9")]
    wanted = [0] * expected.count("<") + inside + [1] * expected.count(">")
    assert words.prompt(PROMPT) == wanted
    assert words.prompt(PROMPT, is_begun=False) == inside
    if "add_bos_token" not in settings and "add_eos_token" not in settings:
        assert words.prompt(PROMPT) == Library.from_file(str(path)).encode(PROMPT).ids
    if words.begin_id is not None:
        assert words.prompt(PROMPT, is_begun=True) == [0, *inside]
    else:
        with pytest.raises(UserError, match=r"no begin token.*--bos no"):
            words.prompt(PROMPT, is_begun=True)


@pytest.mark.parametrize(("beside", "cause"), [
    ({"tokenizer_config": {"eos_token": "gone"}}, "eos_token 'gone'"),
    ({"tokenizer_config": {"eos_token": 7}}, "has 7 as eos_token"),
    ({"tokenizer_config": {"bos_token": "gone", "add_bos_token": True}}, "bos_token 'gone'"),
    ({"tokenizer_config": {"add_bos_token": "yes"}}, "yes as add_bos_token"),
    ({"tokenizer_config": []}, "a list where a JSON object"),
    ({"generation_config": {"eos_token_id": "1"}}, "1 as eos_token_id"),
    ({"generation_config": {"eos_token_id": [1, None]}}, "None as eos_token_id"),
    ({"generation_config": {"eos_token_id": 1.5}}, "1.5 as eos_token_id"),
])
def test_malformed_settings_are_refused_by_name(tmp_path, beside, cause):
    with pytest.raises(UserError, match=cause):
        tok.load(given(tmp_path, **beside))


def test_a_template_with_ids_from_elsewhere_is_refused(tmp_path):
    hostile = template("[GO]")
    hostile["post_processor"]["processors"][1]["special_tokens"]["[GO]"]["ids"] = [10**6]
    words = tok.load(written(tmp_path, hostile, tokenizer_config={"eos_token": "[STOP]"}))
    with pytest.raises(UserError, match=r"1000000.*outside its vocabulary.*--bos no"):
        words.prompt("a")


def forms():
    """Files of the form that released families have, at the small tokenizer's size."""
    special = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
               "special": True}

    def family(names, normalizer, steps, **model):
        description = changed(lambda d: d.update(normalizer=normalizer, pre_tokenizer=cuts(*steps)))
        description["model"] |= model
        vocab = description["model"]["vocab"]
        vocab["<unused>"] = vocab.pop(tok.END)
        description["added_tokens"] = [
            special | {"id": 300 + i, "content": name} for i, name in enumerate(names)]
        return description

    llama = family(("<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"), None, [split(LLAMA)],
                   ignore_merges=True, unk_token=None, byte_fallback=False)
    llama["post_processor"] = template("[GO]")["post_processor"]
    around = llama["post_processor"]["processors"][1]
    around["single"][0] = {"SpecialToken": {"id": "<|begin_of_text|>", "type_id": 0}}
    around["pair"] = around["single"]
    around["special_tokens"] = {"<|begin_of_text|>": {
        "id": "<|begin_of_text|>", "ids": [300], "tokens": ["<|begin_of_text|>"]}}
    yield "Llama 3", llama, {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"}, \
        [301, 302], 302, (302, 301), [300]
    qwen = family(("<|endoftext|>", "<|im_start|>", "<|im_end|>"), {"type": "NFC"},
                  [split(LLAMA)], dropout=None, fuse_unk=False)
    yield "Qwen", qwen, {"add_bos_token": False, "bos_token": None, "eos_token": "<|im_end|>"}, \
        [302, 300], 302, (302, 300), []
    kimi = family(("[BOS]", "[EOS]", "<|im_end|>"), None, [split(
        r"[\p{Han}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{M}&&[^\p{Han}]]*[\p{Ll}\p{M}&&[^\p{Han}]]+|.")])
    yield "Kimi", kimi, {"bos_token": "[BOS]", "eos_token": "[EOS]"}, 302, 301, (301, 302), []


@pytest.mark.parametrize("form", forms(), ids=lambda form: form[0])
def test_the_forms_of_released_families_are_taken_and_obeyed(tmp_path, form):
    _, description, settings, ends, end_id, end_ids, before = form
    words = tok.load(written(tmp_path, description, tokenizer_config=settings,
                             generation_config={"eos_token_id": ends}))
    assert (words.end_id, words.end_ids) == (end_id, end_ids)
    for text in [*TEXTS, AWKWARD]:
        ids = words.encode(text)
        assert words.decode(ids) == text
        assert tok.token_bytes(words)[ids].sum() == len(text.encode())
    assert words.prompt("to be") == [*before, *words.encode("to be")]
