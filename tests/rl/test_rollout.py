"""A rollout is what the policy says: its log-probabilities are the trainer's, its tokens depend on
parameters, question and seed alone, and an output that cannot be scored earns nothing.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsjax.config.parallel import ParallelConfig
from dsjax.config.run import PrecisionConfig
from dsjax.errors import UserError
from dsjax.infer.engine.device import Device, Setting
from dsjax.infer.engine.engine import Engine
from dsjax.infer.model import Model
from dsjax.infer.sample import Sampling
from dsjax.layers.backend import single
from dsjax.model import loss as losses
from dsjax.rl import rollout, weights
from dsjax.rl.rewards import rules
from dsjax.rl.rollout import Asked
from dsjax.runtime import backend as backends
from tests.rl import small

ASKED = Asked(small.RL.samples, small.RL.max_prompt_tokens, small.RL.max_new_tokens,
              {"colon": 1.0})
TOLERANCE = 2e-5  # of log-probabilities about 5: float32's roundings in three layers, some dozens


def rolled(engine, problems, seed=(0, 0), asked=ASKED):
    return rollout.roll_out(engine, small.words(), problems, asked, seed)


@functools.cache
def trainer():
    return jax.jit(functools.partial(losses.token_logprobs, cfg=small.MODEL, backend=single()))


def assert_of(params, made):
    """The engine's log-probabilities are those of the parameters, in the expanded form."""
    wanted = trainer()(params, jnp.asarray(made.tokens), jnp.asarray(made.real, jnp.int32))
    wanted = np.where(made.mask, wanted, 0.0)
    assert np.abs(wanted).max() > 1
    np.testing.assert_allclose(made.engine, wanted, rtol=0, atol=TOLERANCE)


@pytest.fixture
def engine():
    found = small.engine()
    weights.exchange(found, small.params(), small.RUN, None)
    return found


def test_log_probabilities_of_the_engine_are_the_trainers(engine):
    made = rolled(engine, small.asked())
    assert made.mask.any(axis=1).all()
    assert_of(small.params(), made)


def test_rows_say_what_was_asked_and_answered(engine):
    problems = small.asked()
    made = rolled(engine, problems)
    assert made.groups.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert [one.prompt for one in made.problems[::4]] == [one.prompt for one in problems]
    for r, problem in enumerate(made.problems):
        question = small.words().encode(problem.prompt)
        row, own = made.tokens[r], made.tokens[r][made.mask[r]].tolist()
        assert row[: len(question)].tolist() == question
        assert not made.mask[r, : len(question)].any()
        assert made.real[r].sum() == len(question) + len(own)
        is_ended = own[-1] == small.words().end_id
        assert made.is_truncated[r] == (not is_ended)
        assert is_ended or len(own) == ASKED.max_new_tokens
        assert made.texts[r] == small.words().decode(own[: len(own) - is_ended])
    assert len({tuple(row) for row in made.tokens[:4].tolist()}) > 1


def test_outputs_depend_on_no_company_and_on_every_part_of_the_seed(engine):
    made = rolled(engine, small.asked())
    few = small.engine(4)  # a third of the rows at once
    weights.exchange(few, small.params(), small.RUN, None)
    np.testing.assert_array_equal(rolled(few, small.asked()).tokens, made.tokens)
    for seed in ((0, 1), (1, 0)):
        assert (rolled(engine, small.asked(), seed).tokens != made.tokens).any()


def test_after_an_exchange_nothing_is_left_of_former_weights(engine):
    """The questions are those of before, whose pages would be found."""
    rolled(engine, small.asked())
    before = engine.stats().cached_tokens
    rolled(engine, small.asked())
    assert engine.stats().cached_tokens > before
    other = small.params(1)
    before = engine.stats().cached_tokens
    weights.exchange(engine, other, small.RUN, None)
    first = rolled(engine, small.asked(), asked=dataclasses.replace(ASKED, samples=1))
    assert engine.stats().cached_tokens == before
    assert_of(other, first)


def test_what_can_be_shared_is_the_trainers_own_array(engine):
    mine, theirs = small.params(), engine.device.params
    assert theirs.embed is mine.embed
    assert theirs.head is mine.head
    assert theirs.norm is mine.norm
    for a, b in zip(jax.tree.leaves(theirs.stacks["dense.0"]),
                    jax.tree.leaves(mine.stacks["dense"]), strict=True):
        assert a is b


def test_weights_are_not_exchanged_under_a_request(engine):
    number = engine.add([5, 6], Sampling(max_new_tokens=3), lambda output: None)
    with pytest.raises(UserError, match=r"under way.*wait"):
        engine.exchange(small.params(1))
    engine.cancel(number)
    while engine.step():
        pass
    engine.exchange(small.params(1))


def test_a_rule_that_fails_gives_nothing_and_is_named(engine, monkeypatch):
    def raises(prompt, text, reference):
        raise ZeroDivisionError("no luck")

    monkeypatch.setitem(rules.RULES, "raises", raises)
    monkeypatch.setitem(rules.RULES, "nothing", lambda *_: None)
    monkeypatch.setitem(rules.RULES, "nan", lambda *_: float("nan"))
    failing = {"raises": 1.0, "nothing": 1.0, "nan": 1.0}
    made = rolled(engine, small.asked(), asked=dataclasses.replace(ASKED, rewards=failing))
    assert made.rewards.tolist() == [0.0] * 12
    assert made.faults == {"raises": 12, "nothing": 12, "nan": 12}
    assert "no luck" in made.scored[0].faults["raises"]


def test_a_question_that_does_not_fit_is_refused(engine):
    with pytest.raises(UserError, match=r"26 tokens.*max-prompt-tokens"):
        rolled(engine, small.asked(level=13))


def test_rules_are_read_with_their_weights():
    assert rollout.rewards_of("math, format,language:0.5") == {
        "math": 1.0, "format": 1.0, "language": 0.5}
    with pytest.raises(UserError, match=r"--rl\.rewards.*'x'"):
        rollout.rewards_of("math:x")
    with pytest.raises(UserError, match="did you mean math"):
        rollout.rewards_of("maths")


@pytest.mark.exhaustive
def test_matrices_that_travel_in_bfloat16_make_the_products_of_masters():
    """In bfloat16 a product rounds its matrix; whether that is done before it is moved or there."""
    run = dataclasses.replace(small.RUN, precision=PrecisionConfig("bf16", activations="bfloat16"))
    places = weights.Places(None, None, ParallelConfig())
    narrow = weights.open_engine(run, small.params(), small.words(), places)
    assert narrow.device.params.stacks["moe.0"].attn.w_o.dtype == jnp.bfloat16
    made = rolled(narrow, small.asked())
    length = small.RL.max_prompt_tokens + small.RL.max_new_tokens
    backend = backends.for_decoding(small.MODEL, run.precision)
    model = Model(small.MODEL, small.params(), small.words(), length, backend, None)
    wide = Engine(Device(model, Setting(slots=12, max_len=length, page_size=16, top_logprobs=1,
                                        chunk=small.RL.max_prompt_tokens, keep_routes=True)))
    found = rolled(wide, small.asked())
    np.testing.assert_array_equal(found.tokens, made.tokens)
    np.testing.assert_array_equal(found.engine, made.engine)
