"""Questions through a checkpoint's chat template: the engine reads exactly a server's prompt, an
answer ends where the template closes it, and a thought that the template opens is seen by rules.
"""

import dataclasses

import numpy as np
import pytest

from dsjax.errors import UserError
from dsjax.infer.sample import Sampling
from dsjax.rl import opening, rollout, weights
from dsjax.rl.rewards import sections
from dsjax.rl.rollout import Asked
from dsjax.serve.template import ChatTemplate
from dsjax.train.tuning import examples
from tests.rl import small
from tests.serve.conftest import ASSISTANT, END, TEMPLATE, USER

THINKING = TEMPLATE.replace("{% if thinking %}", "{% if true %}")
CLOSED = TEMPLATE.replace(f"content + '{END}'", f"content + '{USER}'")
"""Answers end with the mark of the user's turn."""


def chat(source=TEMPLATE):
    return ChatTemplate(source, {"bos_token": END}, small.words())


def asked(source=TEMPLATE, **fields):
    return Asked(2, 24, 7, {"colon": 1.0}, chat=chat(source), **fields)


@pytest.fixture(scope="module")
def engine():
    found = small.engine()
    weights.exchange(found, small.params(), small.RUN, None)
    return found


def test_the_prompt_is_the_servers_and_the_output_follows_it(engine):
    (problem,) = small.asked(1, level=8)
    made = rollout.roll_out(engine, small.words(), [problem], asked(), (0, 0))
    prompt = chat().prompt([{"role": "user", "content": problem.prompt}]).ids
    words = small.words()
    assert words.decode(prompt) == f"{END}{USER}{problem.prompt}{ASSISTANT}"
    for row in range(2):
        assert made.tokens[row, : len(prompt)].tolist() == prompt
        first = int(np.flatnonzero(made.mask[row])[0])
        assert first == len(prompt)
    bare = rollout.roll_out(engine, words, [problem], dataclasses.replace(asked(), chat=None),
                            (0, 0))
    assert not np.array_equal(bare.tokens, made.tokens)
    assert bare.problems == made.problems


def test_an_answer_ends_as_the_template_closes_it(engine, monkeypatch):
    """Whichever token that is, besides the end of documents."""
    ends = []
    monkeypatch.setattr(rollout, "Sampling", lambda **known: ends.append(known["stop_ids"]) or
                        Sampling(**known))
    rollout.roll_out(engine, small.words(), small.asked(1, level=8), asked(CLOSED), (0, 0))
    closing = examples.closing(chat(CLOSED), small.words())
    assert closing not in small.words().end_ids
    assert set(ends) == {(*small.words().end_ids, closing)}


def test_a_thought_that_the_template_opens_is_a_part_of_the_output(engine):
    made = rollout.roll_out(engine, small.words(), small.asked(1, level=3), asked(THINKING), (0, 0))
    assert all(text.startswith(sections.THINK) for text in made.texts)


def test_a_question_that_does_not_fit_with_its_template_is_refused(engine):
    with pytest.raises(UserError, match=r"tokens with the chat template.*--rl\.max-prompt-tokens"):
        rollout.roll_out(engine, small.words(), small.asked(1), asked(), (0, 0))


def test_a_run_takes_the_template_of_its_checkpoint_and_keeps_it(tmp_path):
    begun, out = tmp_path / "begun", tmp_path / "out"
    for folder in (begun, out):
        folder.mkdir()
    run = dataclasses.replace(small.RUN, init_from=str(begun),
                              rl=dataclasses.replace(small.RL, chat=True))
    with pytest.raises(UserError, match=r"begun has none.*tokenizer_config\.json"):
        opening.asked_of(run, small.words(), out)
    (begun / "chat_template.jinja").write_text(TEMPLATE)
    found = opening.asked_of(run, small.words(), out)
    assert found.chat is not None
    assert found.chat.source == TEMPLATE
    (begun / "chat_template.jinja").unlink()
    assert opening.asked_of(run, small.words(), out).chat.source == TEMPLATE
    plain = dataclasses.replace(run, rl=small.RL)
    assert opening.asked_of(plain, small.words(), out).chat is None
    with pytest.raises(UserError, match=r"--rl\.chat.*--init-from"):
        opening.refuse(dataclasses.replace(run, init_from=None))
