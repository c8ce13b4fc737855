"""Answers are the engine's: by the request's sampling, up to its stop texts, in its order."""

import json
import shutil

import pytest

pytest.importorskip("lm_eval", reason="needs pip install '.[lm-eval]'")

from dsjax.errors import UserError
from dsjax.evaluate.harness.model import DsjaxLM
from tests.evaluate.harness.asked import CONTEXT, answer, ask, prompts

pytestmark = pytest.mark.filterwarnings("ignore")  # the harness's and its libraries' own


def test_an_answer_ends_at_its_limit_and_before_its_stop_text(lm):
    whole = answer(lm, "Question:", until=[])
    assert len(whole) > 8
    assert answer(lm, "Question:", until=[""]) == whole
    assert answer(lm, "Question:", until=None) == whole
    for name in ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens"):
        shorter = answer(lm, "Question:", until=[], **{name: 3})
        assert whole.startswith(shorter)
        assert len(shorter) < len(whole)
    stop = whole[5:7]
    assert answer(lm, "Question:", until=stop) == whole[: whole.index(stop)]
    assert answer(lm, "", until=[]) == answer(lm, lm._words.pieces[lm.prefix_token_id].decode(),
                                              until=[])


def test_answers_keep_the_order_of_the_requests_whatever_they_ask(lm):
    given = [{"until": []}, {"until": ["e"]}, {"until": [], "max_gen_toks": 4},
             {"until": ["e"], "do_sample": True, "temperature": 1.0}]
    pairs = [(f"Question: {i}", one) for i in range(3) for one in given]
    alone = [answer(lm, prompt, **one) for prompt, one in pairs]
    assert lm.generate_until(prompts(*pairs), disable_tqdm=True) == alone
    assert len(set(alone)) > 6


def test_sampled_answers_are_the_seeds_and_differ_among_repeats(run, lm):
    hot = {"until": [], "do_sample": True, "temperature": 1.5, "top_p": 0.95}
    found = lm.generate_until(prompts(*[("Question:", hot)] * 3), disable_tqdm=True)
    assert len(set(found)) == 3
    assert lm.generate_until(prompts(*[("Question:", hot)] * 3), disable_tqdm=True) == found
    assert answer(lm, "Question:", **hot, seed=1) not in found
    greedy = answer(lm, "Question:", until=[])
    assert answer(lm, "Question:", until=[], temperature=0.0) == greedy
    assert answer(lm, "Question:", until=[], do_sample=False, temperature=1.5) == greedy
    assert answer(lm, "Question:", until=[], do_sample=True, top_k=1) == greedy
    assert answer(lm, "Question:", until=[], do_sample=True, top_k=0) != greedy


def test_the_end_tokens_end_an_answer_and_no_id_without_a_token_is_written(lm):
    (asked,), = lm._asked(prompts(("Question:", {"until": []}))).values()
    assert asked.sampling.stop_ids == lm.model.tokenizer.end_ids
    assert asked.sampling.vocab == lm.model.tokenizer.vocab < lm.model.cfg.vocab


def test_prompts_without_room_are_cut_and_answers_lowered_and_both_are_said(lm, capsys):
    text = "Question: what is the answer? " * 200
    short = lm.model.tokenizer.decode(lm.tok_encode(text)[-(CONTEXT - 24):])
    assert answer(lm, text, until=[]) == answer(lm, short, until=[])
    assert "1 of 1 requests were longer" in capsys.readouterr().err
    answer(lm, "Question:", until=["e"], max_gen_toks=4000)
    assert "room for 256 tokens, not 4,000" in capsys.readouterr().err


@pytest.mark.parametrize(("given", "said"), [
    ({"beams": 4}, "'beams', which nothing here obeys"), ({"num_beams": 4}, "num_beams=4"),
    ({"until": [3]}, r"until=\[3\]"), ({"do_sample": True, "temperature": -1}, "temperature=-1"),
    ({"do_sample": True, "top_p": "much"}, "top_p='much'"),
    ({"max_gen_toks": 0}, "max_new_tokens=0"),
    ({"do_sample": True, "top_k": 2.5}, "top_k=2.5"), ({"max_gen_toks": "many"}, "cannot be read")])
def test_generation_arguments_that_nothing_obeys_are_refused(lm, given, said):
    with pytest.raises(UserError, match=said):
        answer(lm, "Question:", **{"until": [], **given})


TEMPLATE = """{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}\
{{ raise_exception('no system here') }}{% endif %}<{{ m.role }}>{{ m.content }}\n{% endfor %}\
{% if add_generation_prompt %}<assistant>{% endif %}"""


@pytest.fixture(scope="module")
def chatty(run, tmp_path_factory):
    """The same run with a begin token that its files put before a text, and a chat template."""
    folder = tmp_path_factory.mktemp("chatty") / "run"
    shutil.copytree(run, folder)
    (folder / "tokenizer_config.json").write_text(json.dumps({
        "chat_template": TEMPLATE, "bos_token": "<|fim_begin|>", "add_bos_token": True}))
    return DsjaxLM(folder=str(folder), context=CONTEXT, slots=2, max_gen_toks=8)


def test_conversations_are_rendered_and_begun_once(chatty, capsys):
    turns = [{"role": "user", "content": "what is"}, {"role": "assistant", "content": "it is "}]
    text = chatty.apply_chat_template(turns)
    assert text == "<|fim_begin|><user>what is\n<assistant>it is \n<assistant>"
    begin = chatty.prefix_token_id
    assert chatty.tok_encode(text).count(begin) == 1
    assert chatty.tok_encode("what is")[0] == begin
    assert begin not in chatty.tok_encode("what is", add_special_tokens=False)
    assert chatty.apply_chat_template(turns, add_generation_prompt=False).endswith(">it is")
    named = chatty.apply_chat_template([turns[0], {"role": "assistant", "content": "assistant"}],
                                       add_generation_prompt=False)
    assert named == "<|fim_begin|><user>what is\n<assistant>assistant"
    without = chatty.apply_chat_template([{"role": "system", "content": "no"}, *turns])
    assert without == text
    assert "takes no system message" in capsys.readouterr().err
    assert chatty.chat_template(True) == TEMPLATE
    assert chatty.chat_template(False) is None


def test_a_task_is_asked_through_the_chat_template(chatty, here):
    found = ask(chatty, ["gsm8k"], apply_chat_template=True, fewshot_as_multiturn=True, limit=1)
    ((prompt, _),) = found["samples"]["local_gsm8k"][0]["arguments"]
    assert prompt.startswith("<|fim_begin|><user>Question:")
    assert prompt.count("<assistant>") == 6
    assert prompt.endswith("Answer:\n<assistant>")


def test_templates_that_are_not_there_are_refused(lm, chatty):
    with pytest.raises(UserError, match="no chat template; leave --apply_chat_template out"):
        lm.apply_chat_template([{"role": "user", "content": "what is"}])
    with pytest.raises(UserError, match="names a template"):
        chatty.chat_template("tools")
    assert lm.tokenizer_name != chatty.tokenizer_name
