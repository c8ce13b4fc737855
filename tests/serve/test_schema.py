"""Every body is a typed request or a refusal in OpenAI's shape; nothing is guessed."""

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dsjax.serve import schema
from dsjax.serve.answers import dumps
from dsjax.serve.refusal import Refusal

SCALAR = (st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9)
          | st.sampled_from(["short", "user", "text", -1, 0, 1, 2, 2**63, 1e308, "\ud800"]))
VALUE = st.recursive(SCALAR, lambda inner: st.lists(inner, max_size=3)
                     | st.dictionaries(st.sampled_from(["role", "content", "type", "text",
                                                        "include_usage", "a"]), inner, max_size=3),
                     max_leaves=6)
NAMES = ["model", "prompt", "messages", "temperature", "top_p", "top_k", "min_p", "n", "stop",
         "max_tokens", "max_completion_tokens", "seed", "logprobs", "top_logprobs", "stream",
         "stream_options", "echo", "suffix", "best_of", "logit_bias", "user", "tools",
         "response_format", "presence_penalty", "frequency_penalty", "repetition_penalty",
         "ignore_eos", "chat_template_kwargs", "nonsense"]
MESSAGE = {"role": "user", "content": "To be"}


def outcome(read, body):
    """What is read, or the refusal."""
    try:
        return read(body)
    except Refusal as refused:
        return refused


def refusal(read, body):
    with pytest.raises(Refusal) as refused:
        read(body)
    return refused.value


@settings(suppress_health_check=[HealthCheck.too_slow])  # the first of a process loads Unicode
@given(st.dictionaries(st.sampled_from(NAMES), VALUE, max_size=8), st.booleans())
def test_any_object_is_read_or_refused(body, is_usual):
    for read, usual in [(schema.completion, {"model": "m", "prompt": "a"}),
                        (schema.chat, {"model": "m", "messages": [MESSAGE]})]:
        got = outcome(read, {**usual, **body} if is_usual else body)
        if isinstance(got, Refusal):
            assert (got.status, len(got.message) < 500) == (400, True)
            assert json.loads(dumps(got.body()))["error"]["message"] == got.message


@given(st.binary(max_size=40) | st.text(max_size=40).map(lambda t: t.encode("utf-8", "replace")))
def test_any_bytes_are_an_object_or_refused(body):
    got = outcome(schema.parse, body)
    assert isinstance(got, dict) or got.status == 400


@pytest.mark.parametrize(("body", "keyword"), [
    (b"", "it is empty"), (b"[1]", "a list"), (b'{"a": NaN}', "NaN is not"), (b"{", "not JSON"),
    (b'{"a": ' + b"[" * 100_000, "not JSON|nested"), (b"\xff\xfe{}", "not JSON"),
    (b'{"a": ' + b"9" * 5000 + b"}", "not JSON"), (b"[" * 10_000 + b"]" * 10_000, "nested|a list"),
])
def test_what_is_no_json_is_refused(body, keyword):
    with pytest.raises(Refusal, match=keyword):
        schema.parse(body)


@pytest.mark.parametrize(("field", "value", "param"), [
    ("temperature", float("nan"), "temperature"), ("temperature", float("inf"), "temperature"),
    ("temperature", "0.5", "temperature"), ("temperature", True, "temperature"),
    ("temperature", -0.1, "temperature"), ("temperature", 2.1, "temperature"),
    ("temperature", 10**400, "temperature"), ("top_p", 0, "top_p"), ("top_p", 1.01, "top_p"),
    ("max_tokens", 0, "max_tokens"), ("max_tokens", 5.0, "max_tokens"),
    ("max_tokens", 10**30, "max_tokens"), ("n", 0, "n"), ("n", 129, "n"), ("n", "2", "n"),
    ("stop", [1], "stop"), ("stop", "", "stop"), ("stop", list("abcde"), "stop"),
    ("stop", "a" * 1001, "stop"), ("seed", 2**63, "seed"), ("seed", 1.5, "seed"),
    ("stream", 1, "stream"), ("stream_options", {"include_usage": True}, "stream_options"),
    ("model", None, "model"), ("model", 3, "model"), ("echo", True, "echo"),
    ("best_of", 2, "best_of"), ("logit_bias", {"5": 1}, "logit_bias"), ("suffix", "a", "suffix"),
    ("frequency_penalty", 2.5, "frequency_penalty"), ("nonsense", 1, "nonsense"),
])
def test_a_wrong_field_is_named_with_its_value(field, value, param):
    usual = {"model": "m", "prompt": "a", "messages": [MESSAGE]}
    for read, other in ((schema.completion, "messages"), (schema.chat, "prompt")):
        body = {name: held for name, held in usual.items() if name != other} | {field: value}
        refused = refusal(read, body)
        assert refused.param == param
        assert param in refused.message


@pytest.mark.parametrize(("messages", "where"), [
    ([], "messages"), ("hello", "messages"), ([3], "messages[0]"), ([{}], "messages[0].role"),
    ([MESSAGE, {"role": "tool", "content": "a"}], "messages[1].role"),
    ([{"role": ["user"], "content": "a"}], "messages[0].role"),
    ([{"role": "user"}], "messages[0].content"), ([MESSAGE | {"tool_calls": [1]}], "messages[0]"),
    ([MESSAGE | {"content": [{"type": "image_url"}]}], "messages[0].content[0]"),
])
def test_a_wrong_message_is_named_by_its_place(messages, where):
    assert refusal(schema.chat, {"model": "m", "messages": messages}).param == where


def test_what_asks_for_nothing_is_let_through():
    body = {"model": "m", "prompt": "a", "echo": False, "suffix": None, "best_of": 1,
            "logit_bias": {}, "user": "me", "metadata": {"a": "b"}, "top_k": -1, "min_p": 0,
            "repetition_penalty": 1, "presence_penalty": 0, "temperature": None}
    assert schema.completion(body).asked.sampling == {}


def test_messages_are_texts_and_parts_of_text_and_what_clients_send_back():
    said = {"role": "assistant", "content": "b", "refusal": None, "tool_calls": None,
            "annotations": [], "reasoning_content": "hm"}
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    read = schema.chat({"model": "m", "messages": [
        {"role": "developer", "content": "d"}, {"role": "user", "content": parts}, said]})
    assert read.messages == ({"role": "system", "content": "d"}, {"role": "user", "content": "ab"},
                             {"role": "assistant", "content": "b"})


@pytest.mark.parametrize(("prompt", "read"), [
    ("a", ("a",)), (["a", "b"], ("a", "b")), ([1, 2], ((1, 2),)), ([[1], [2, 3]], ((1,), (2, 3))),
    ("", ("",)),
])
def test_prompts_come_in_four_forms(prompt, read):
    assert schema.completion({"model": "m", "prompt": prompt}).prompts == read


@pytest.mark.parametrize("prompt", [[], [[]], 3, [1, "a"], [True], {"a": 1}, [None], [1.0]])
def test_other_prompts_are_refused(prompt):
    assert refusal(schema.completion, {"model": "m", "prompt": prompt}).param == "prompt"


def test_a_sampling_field_that_was_given_is_kept():
    given_fields = {"temperature": 0.5, "top_p": 0.9, "seed": -3, "top_k": 5, "min_p": 0.1,
                    "presence_penalty": -1, "frequency_penalty": 1, "repetition_penalty": 1.2}
    assert schema.completion({"model": "m", "prompt": "a", **given_fields}).asked.sampling == \
        given_fields
