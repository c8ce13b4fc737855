"""Only completions are learned, after the ids that a server would ask with; a bad line is named."""

import dataclasses
import functools
import gzip

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsjax.config.loss import LossConfig
from dsjax.config.sft import SFTConfig
from dsjax.data.pack import ArrayRows
from dsjax.data.tokenizers import tokenizer
from dsjax.errors import UserError
from dsjax.model import loss as losses
from dsjax.model import transformer
from dsjax.model.loss import Batch, Objective
from dsjax.serve.template import ChatTemplate
from dsjax.train.tuning import examples, rows
from dsjax.train.tuning.examples import Example
from tests import agreement
from tests.serve.conftest import ASSISTANT, END, TEMPLATE, USER
from tests.serve.test_template import GOLDEN
from tests.train.tuning import small_sft

MARKS = (END, USER, ASSISTANT)
THINKING = TEMPLATE.replace("{% if thinking %}", "{% if true %}")


@pytest.fixture(scope="module")
def words():
    return tokenizer.train_bpe([small_sft.TEXT], 290, (*tokenizer.SPECIAL, "<think>", "</think>"))


@pytest.fixture(scope="module")
def chat(words):
    return ChatTemplate(TEMPLATE, {"bos_token": END}, words)


def learned(example, words):
    """Text that is learned and text that is not, in their runs."""
    found, last = [], None
    for i, flag in zip(example.ids, example.is_learned, strict=True):
        if flag is not last:
            found.append((flag, []))
        found[-1][1].append(i)
        last = flag
    return [(flag, words.decode(ids)) for flag, ids in found]


def of(*contents):
    return [{"role": role, "content": content} for role, content in contents]


def test_a_completion_and_its_end_are_learned_and_its_prompt_is_not(words):
    found = examples.plain("what is a sum? ", "it is <|end_of_text|>.", words)
    assert learned(found, words) == [(False, "what is a sum? "), (True, f"it is {END}.{END}")]
    assert found.ids.count(words.end_id) == 1  # a text cannot forge the end
    found = examples.plain("", "speak", words)
    assert learned(found, words) == [(False, END), (True, f"speak{END}")]


def test_answers_of_a_conversation_are_learned_after_what_a_server_would_ask(words, chat):
    """One example, as the template keeps earlier turns; its ids are those of the rendered whole."""
    messages = of(("system", "Be "), ("user", "a sum?"), ("assistant", "it is"), ("user", "what?"),
                  ("assistant", "you add"))
    (found,) = examples.conversation(messages, words, chat, "here")
    assert learned(found, words) == [
        (False, f"{END}Be {USER}a sum?{ASSISTANT}"), (True, f"it is{END}"),
        (False, f"{USER}what?{ASSISTANT}"), (True, f"you add{END}")]
    asked = chat.prompt(messages[:4]).ids
    assert found.ids[: len(asked)] == asked


def test_an_answer_whose_past_the_template_changes_is_an_example_of_its_own(words, chat):
    """R1's template cuts the thoughts of earlier answers off."""
    messages = of(("user", "a"), ("assistant", "<think>hm</think>b"), ("user", "c"),
                  ("assistant", "<think>so</think>d"))
    first, second = examples.conversation(messages, words, chat, "here")
    assert learned(first, words) == [(False, f"{END}{USER}a{ASSISTANT}"),
                                     (True, f"<think>hm</think>b{END}")]
    assert learned(second, words) == [
        (False, f"{END}{USER}a{ASSISTANT}b{END}{USER}c{ASSISTANT}"),
        (True, f"<think>so</think>d{END}")]
    think = words.encode("<think>", special=True)
    assert think[0] in first.ids


def test_a_thought_that_the_template_opens_is_gone_on_with(words):
    opens = ChatTemplate(THINKING, {"bos_token": END}, words)
    (found,) = examples.conversation(of(("user", "a"), ("assistant", "<think>hm</think>b")), words,
                                     opens, "here")
    assert learned(found, words) == [(False, f"{END}{USER}a{ASSISTANT}<think>"),
                                     (True, f"hm</think>b{END}")]
    with pytest.raises(UserError, match=r"line 3.*opens a thought.*has no </think>"):
        list(examples.conversation(of(("user", "a"), ("assistant", "b")), words, opens, "line 3"))


def test_answers_by_r1_s_own_template_go_on_with_the_thought_that_it_opens():
    """Each answer is an example, as the template drops the thoughts of earlier ones."""
    begin, end, user, assistant = (f"<\uff5c{name}\uff5c>" for name in (
        "begin\u2581of\u2581sentence", "end\u2581of\u2581sentence", "User", "Assistant"))
    words = tokenizer.train_bpe([small_sft.TEXT], 290, (
        begin, end, user, assistant, "<think>", "</think>"))
    r1 = ChatTemplate(GOLDEN["templates"]["deepseek-r1"], GOLDEN["names"], words)
    messages = of(("user", "a"), ("assistant", "<think>\nhm\n</think>\n\nb"), ("user", "c"),
                  ("assistant", "</think>d"))
    first, second = examples.conversation(messages, words, r1, "here")
    assert learned(first, words) == [
        (False, f"{begin}{user}a{assistant}<think>\n"), (True, f"hm\n</think>\n\nb{end}")]
    assert learned(second, words) == [
        (False, f"{begin}{user}a{assistant}\n\nb{end}{user}c{assistant}<think>\n"),
        (True, f"</think>d{end}")]
    assert examples.closing(r1, words) == words.encode(end, special=True)[0]


def test_the_token_that_closes_an_answer_is_the_template_s(words):
    other = ChatTemplate(TEMPLATE.replace(f"content + '{END}'", f"content + '{USER}'"),
                         {"bos_token": END}, words)
    assert examples.closing(other, words) == words.encode(USER, special=True)[0]
    assert examples.closing(ChatTemplate("{{ messages[0].content }}", {}, words), words) == \
        words.end_id


@pytest.mark.parametrize(("lines", "said"), [
    ([{"prompt": "a", "completion": " "}], "line 1 has an empty text in field 'completion'"),
    ([{"prompt": "a", "completion": "b"}, {"prompt": "a"}], "line 2 has no field 'completion'"),
    ([{"text": "a"}], "line 1 is no example, its fields are text; give prompt and completion"),
    ([{"messages": []}], "line 1 has no list of messages"),
    ([{"messages": of(("user", "a"))}], "line 1 ends with a message of user"),
    ([{"messages": of(("user", "a"), ("assistant", " "))}], "message 2, is an empty answer"),
    ([{"messages": of(("robot", "a"))}], "message 1, is no object with a role of system, user"),
    ([{"prompt": "a", "completion": "b " * 50}],
     "line 1 makes an example of .* room for 13.*--train.seq-len .*--sft.long cut or drop"),
    ([{"prompt": "a " * 50, "completion": "b"}], "room for 13"),
], ids=range(9))
def test_a_line_that_is_no_example_is_named(lines, said, words, chat, tmp_path):
    path = small_sft.write(tmp_path / "bad.jsonl", lines)
    with pytest.raises(UserError, match=said):
        examples.read(path, words, chat, SFTConfig(), 12)


def test_messages_want_a_chat_template(words, tmp_path):
    path = small_sft.write(tmp_path / "m.jsonl", [{"messages": of(("user", "a"))}])
    with pytest.raises(UserError, match="line 1 has messages, and the checkpoint has no chat"):
        examples.read(path, words, None, SFTConfig(), 12)


def test_examples_that_are_too_long_are_cut_or_dropped_and_counted(words, tmp_path):
    """One fits, one loses its end, one has its whole completion behind the row's end."""
    lines = [{"prompt": "a", "completion": "b"}, {"prompt": "a", "completion": "b" * 50},
             {"prompt": "a" * 50, "completion": "b"}]
    path = tmp_path / "long.jsonl.gz"
    path.write_bytes(gzip.compress(
        small_sft.write(tmp_path / "long.jsonl", lines).read_bytes()))
    cut = examples.read(path, words, None, SFTConfig(long="cut"), 12)
    assert [len(one.ids) for one in cut.examples] == [3, 13]
    assert (cut.cut, cut.dropped) == (1, 1)
    dropped = examples.read(path, words, None, SFTConfig(long="drop"), 12)
    assert [len(one.ids) for one in dropped.examples] == [3]
    assert (dropped.cut, dropped.dropped) == (0, 2)


def test_questions_are_messages_where_there_is_a_template(words, chat, tmp_path):
    path = small_sft.write(tmp_path / "q.jsonl", [{"question": "a", "answer": "b"}])
    chatted, plain = (examples.read(path, words, by, SFTConfig(), 40) for by in (chat, None))
    assert learned(chatted.examples[0], words) == [(False, f"{END}{USER}a{ASSISTANT}"),
                                                   (True, f"b{END}")]
    assert learned(plain.examples[0], words) == [(False, "Question: a\nAnswer:"),
                                                 (True, f" b{END}")]


def test_a_packed_row_s_loss_and_gradients_are_those_of_rows_of_their_own():
    """In float64 the two differ by rounding alone, though rotary positions are others."""
    rng = np.random.default_rng(2)
    made = [Example(rng.integers(0, 11, n).tolist(), (np.arange(n) >= first).tolist())
            for n, first in ((7, 3), (4, 1), (9, 6), (5, 2), (3, 1))]
    cfg = dataclasses.replace(agreement.TINY, layers=2, mtp_depth=1)
    packed, alone = rows.packed(made, 16), [rows.packed([one], 16) for one in made]
    assert len(packed) == 2
    nothing = ArrayRows(*(np.zeros((3, 17), a.dtype)
                          for a in (packed.tokens, packed.segments, packed.weights)))
    with jax.enable_x64(True):
        batches = [Batch(*(jnp.asarray(np.concatenate([getattr(r, name) for r in group]), dtype)
                           for name, dtype in (("tokens", "i4"), ("segments", "i4"),
                                               ("weights", "f8"))))
                   for group in ([packed, nothing], alone)]
        p = agreement.draw(transformer.specs(cfg), 6)
        backend = agreement.double()
        balance = LossConfig(balance=0.0, mtp_weight=0.3)

        @jax.jit
        @functools.partial(jax.value_and_grad, has_aux=True)
        def of(p, batch):
            objective = Objective(losses.count(batch), 0.3, balance)
            return losses.loss(p, batch, objective, cfg, backend)

        ((one, parts), d_one), ((other, _), d_other) = (of(p, batch) for batch in batches)
        agreement.close(one, other)
        jax.tree.map(agreement.close, d_one, d_other)
        assert int(parts.targets[0]) == sum(sum(one.is_learned) for one in made)
