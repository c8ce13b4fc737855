"""OpenAI's own client gets what the library makes: whole and streamed, one and many."""

import json
import urllib.request

import openai
import pytest

from dsjax.infer import Options, Sampling, generate
from dsjax.serve.door import seed
from tests.serve import stand_in
from tests.serve.conftest import CONTEXT, eventually, serving

GREEDY = {"model": "short", "temperature": 0}
MESSAGES = [{"role": "user", "content": "To be"}]


def made(model, ids, most, **sampling):
    """What the library says, without the tokens that stand for no text."""
    words = model.tokenizer
    asked = Sampling(**{"temperature": 0.0, "max_new_tokens": most, "vocab": words.vocab,
                        "stop_ids": words.end_ids} | sampling)
    done = generate(model.params, model.cfg, [ids], asked,
                    Options(model.backend, context=CONTEXT)).completions[0]
    hidden = {words.end_id, words.fim_begin_id, words.fim_hole_id, words.fim_end_id}
    return done, words.decode([token for token in done.tokens if token not in hidden])


def test_a_completion_is_what_generate_makes(here, model):
    ids = model.tokenizer.prompt("that is")
    done, text = made(model, ids, 16)
    for prompt in ("that is", ids):
        got = here.client().completions.create(prompt=prompt, **GREEDY)
        assert got.choices[0].text == text
        assert got.choices[0].finish_reason == done.finish_reason
        assert got.usage.prompt_tokens == len(ids)
        assert got.usage.completion_tokens == len(done.tokens)
        assert got.usage.total_tokens == len(ids) + len(done.tokens)
        assert (got.object, got.model, got.choices[0].logprobs) == ("text_completion", "short",
                                                                   None)


def test_a_seed_is_the_library_s_and_every_answer_has_its_own(here, model):
    ids = model.tokenizer.prompt("To be")
    asked = {"model": "short", "prompt": ["To be", "mind"], "seed": 7, "n": 2, "max_tokens": 9}
    got = here.client().completions.create(**asked)
    assert [choice.index for choice in got.choices] == [0, 1, 2, 3]
    for i in (0, 1):
        _, text = made(model, ids, 9, temperature=1.0, seed=seed(7, i))
        assert got.choices[i].text == text
    assert got.choices[0].text != got.choices[1].text
    again = here.client().completions.create(**asked)
    assert [choice.text for choice in again.choices] == [choice.text for choice in got.choices]
    assert seed(7, 0) == 7
    drawn = here.client().completions.create(**asked | {"seed": None})
    assert [choice.text for choice in drawn.choices] != [choice.text for choice in got.choices]


def test_a_stream_is_the_whole_in_pieces(here):
    asked = {"model": "short", "prompt": "the mind", "seed": 3, "n": 2, "max_tokens": 20,
             "logprobs": 2}
    whole = here.client().completions.create(**asked)
    texts, offsets, reasons, usage = ["", ""], [[], []], [None, None], []
    for chunk in here.client().completions.create(**asked, stream=True,
                                                  stream_options={"include_usage": True}):
        usage.append(chunk.usage)
        for choice in chunk.choices:
            texts[choice.index] += choice.text
            offsets[choice.index] += choice.logprobs.text_offset
            reasons[choice.index] = choice.finish_reason or reasons[choice.index]
    assert texts == [choice.text for choice in whole.choices]
    assert offsets == [choice.logprobs.text_offset for choice in whole.choices]
    assert reasons == [choice.finish_reason for choice in whole.choices]
    assert usage[-1] == whole.usage
    assert set(usage[:-1]) == {None}


def test_a_chat_goes_through_the_template_and_fills_the_context(here, model, chat_template):
    ids = chat_template.prompt(MESSAGES).ids
    done, text = made(model, ids, CONTEXT - len(ids))
    got = here.client().chat.completions.create(messages=MESSAGES, **GREEDY)
    assert got.choices[0].message.content == text
    assert got.choices[0].message.role == "assistant"
    assert got.choices[0].finish_reason == done.finish_reason
    assert got.usage.completion_tokens == len(done.tokens)
    chunks = list(here.client().chat.completions.create(messages=MESSAGES, stream=True, **GREEDY))
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == text
    assert chunks[-1].choices[0].finish_reason == done.finish_reason
    assert {chunk.id for chunk in chunks} == {chunks[0].id}


def test_a_stop_string_cuts_and_ends_the_work(here, model):
    ids = model.tokenizer.prompt("that is")
    _, text = made(model, ids, 30)
    for stop in (text[5:8], [text[9:11], "never seen"], text[0]):
        first = min(text.index(one) for one in ([stop] if isinstance(stop, str) else stop[:1]))
        asked = {"prompt": "that is", "stop": stop, "max_tokens": 30, **GREEDY}
        got = here.client().completions.create(**asked)
        assert (got.choices[0].text, got.choices[0].finish_reason) == (text[:first], "stop")
        assert got.usage.completion_tokens < 30
        chunks = list(here.client().completions.create(**asked, stream=True))
        assert "".join(chunk.choices[0].text for chunk in chunks) == text[:first]
        assert chunks[-1].choices[0].finish_reason == "stop"


def test_log_probabilities_have_both_forms(model, chat_template):
    with serving(stand_in.Engine(model), model, template=chat_template) as there:
        _log_probabilities(there, model)


def _log_probabilities(here, model):
    words = model.tokenizer
    ids = words.prompt("that is")
    done, _ = made(model, ids, 8)
    got = here.client().completions.create(prompt="that is", logprobs=3, max_tokens=8, **GREEDY)
    told = got.choices[0].logprobs
    scored = [token for token in done.tokens if token != words.end_id]
    assert told.token_logprobs == [stand_in.logprob(token) for token in scored]
    assert all(len(top) == 3 for top in told.top_logprobs)
    assert told.text_offset[0] == 0
    assert len(told.tokens) == len(told.text_offset) == len(scored)
    zero = here.client().completions.create(prompt="that is", logprobs=0, max_tokens=8, **GREEDY)
    assert [len(top) for top in zero.choices[0].logprobs.top_logprobs] == [1] * len(scored)
    chat = here.client().chat.completions.create(messages=MESSAGES, logprobs=True, top_logprobs=4,
                                                 max_completion_tokens=8, **GREEDY)
    content = chat.choices[0].logprobs.content
    spelled = b"".join(bytes(one.bytes or ()) for one in content)
    assert spelled.decode(errors="replace") == chat.choices[0].message.content
    assert [len(one.top_logprobs) for one in content] == [4] * len(content)


def test_thoughts_are_told_apart(model, chat_template):
    class Thinker(stand_in.Engine):
        """Says a text of ours instead of the model's."""

        def _generate(self, number, prompt, sampling, on_output, top):
            for token in self.model.tokenizer.encode("hm, </b> so</think>\n\nTo be"):
                on_output(stand_in.output([token], top))
            return "stop"

    with serving(Thinker(model), model, template=chat_template) as there:
        create = there.client().chat.completions.create
        asked = {"messages": MESSAGES, "extra_body": {"chat_template_kwargs": {"thinking": True}},
                 **GREEDY}
        message = create(**asked).choices[0].message
        assert (message.reasoning_content, message.content) == ("hm, </b> so", "To be")
        deltas = [chunk.choices[0].delta for chunk in create(**asked, stream=True)]
        assert "".join(getattr(d, "reasoning_content", "") for d in deltas) == "hm, </b> so"
        assert "".join(d.content or "" for d in deltas) == "To be"
        plain = create(messages=MESSAGES, **GREEDY).choices[0].message
        assert plain.content == "hm, </b> so</think>\n\nTo be"


def test_it_says_what_it_serves_and_how_it_is(here):
    assert [model.id for model in here.client().models.list()] == ["short"]
    assert here.client().models.retrieve("short").id == "short"
    with urllib.request.urlopen(f"{here.url}/health") as answer:
        assert json.load(answer) == {"status": "ok"}
    here.client().completions.create(prompt="To be", **GREEDY)
    lines = metrics(here)
    assert float(lines['dsjax_http_requests_total{path="/v1/completions",status="200"}']) >= 1
    assert float(lines["dsjax_generated_tokens_total"]) >= 1
    assert float(lines["dsjax_first_token_seconds_count"]) >= 1
    eventually(lambda: float(metrics(here)["dsjax_running"]) == 0)  # a step after the answer


def metrics(there):
    with urllib.request.urlopen(f"{there.url}/metrics") as answer:
        return dict(line.rsplit(" ", 1) for line in answer.read().decode().splitlines()
                    if not line.startswith("#"))


def test_the_page_needs_nothing_from_elsewhere(here):
    with urllib.request.urlopen(here.url) as answer:
        page, policy = answer.read().decode(), answer.headers["Content-Security-Policy"]
    assert "http://" not in page
    assert "https://" not in page
    assert "innerHTML" not in page
    assert "default-src 'none'" in policy
    assert policy.count("sha256-") == 2


def test_penalties_and_cuts_reach_the_engine(here):
    got = here.client().completions.create(
        prompt="To be", presence_penalty=1.5, frequency_penalty=1.5, model="short",
        extra_body={"top_k": 1, "min_p": 0.1, "repetition_penalty": 1.3})
    assert got.usage.completion_tokens >= 1


def test_a_model_without_a_template_says_so(model):
    with serving(stand_in.Engine(model), model) as there:
        with pytest.raises(openai.BadRequestError, match="no chat template"):
            there.client().chat.completions.create(messages=MESSAGES, **GREEDY)
        assert there.client().completions.create(prompt="To be", **GREEDY).choices
