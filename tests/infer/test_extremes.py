"""No temperature, share or logit makes a wrong token: what NumPy says in float64 is what is drawn.

The reference takes the largest logit away and divides, in float64, whose range holds every quotient
of float32 numbers that matters here.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsjax.errors import UserError
from dsjax.infer import Options, Sampling, generate
from dsjax.infer.sample import NONE, probs, sample, sampling_params
from dsjax.infer.speculative import verify
from dsjax.model import transformer
from tests import agreement

TEMPERATURES = [5e-324, 1e-46, 1e-40, 1e-38, 1e-12, 1e-9, 1e-3, 0.1, 7.5, 1e30, 1e39, 1.7e308]
ASKED = [*((t, p) for t in TEMPERATURES for p in (1e-46, 1.0)), *((t, 0.3) for t in (1e-9, 1e6)),
         *((1.0, p) for p in (5e-324, 1e-30, 1e-8, 0.3, 0.999, 1 - 2**-53, 1.0))]
SMALLEST = 2.0**-1074


def each(row, count=9):
    """What `count` rows ask for that ask for the same."""
    return sampling_params([row] * count)


def logits(dtype=np.float32):
    """Rows of seven: ordinary, near, equal, far apart, masked, infinite, and of all but one."""
    rng = np.random.default_rng(0)
    rows = [rng.normal(0, 3, 7), 5 + 1e-6 * rng.normal(0, 1, 7), [2, 5, 5, 1, 5, 0, 5],
            [3e38, -3e38, 0, 1, 2e38, -1, 1e30], [-np.inf, 1, 2, -np.inf, 2, 0, -np.inf],
            [1, np.inf, 3, np.inf, -np.inf, 0, 2], [-np.inf] * 6 + [0], [0] * 7, [1e-30] * 6 + [0]]
    return np.array(rows, dtype)


def expected(rows, temperature, top_p):
    """The distribution by definition: [..., V] float64."""
    rows = rows.astype(np.float64)
    out = np.zeros_like(rows)
    for row, share in zip(rows, out):
        best = row.max()
        with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
            below = np.where(row == best, 0.0, row - best)
            mass = np.where(np.isneginf(below), 0.0, np.exp(below / max(temperature, SMALLEST)))
        mass /= mass.sum()
        order = np.argsort(-mass, kind="stable")
        before = np.cumsum(mass[order]) - mass[order]
        kept = order[(before < top_p) | (np.arange(7) == 0)]
        share[kept] = mass[kept] / mass[kept].sum()
    return out


def is_clear(rows, temperature, top_p):
    """True where float32 sees which token crosses top_p: sums keep off it, and no two shares that
    differ are as one."""
    ranked = -np.sort(-expected(rows, temperature, 1.0), axis=-1)
    crossing = np.abs(np.cumsum(ranked, axis=-1)[:, :-1] - top_p).min(axis=-1)
    gaps = ranked[:, :-1] - ranked[:, 1:]
    merged = ((gaps > 0) & (gaps < 1e-6 * ranked[:, :-1])).any(axis=-1)
    return ((crossing > 1e-6) | (top_p < 1e-6)) & ~merged | (top_p == 1)


@pytest.mark.parametrize("is_double", [False, True], ids=["float32", "float64"])
def test_every_temperature_and_share_makes_the_distribution_of_numpy(is_double):
    rows = logits(np.float64 if is_double else np.float32)
    with jax.enable_x64(is_double):
        run = jax.jit(lambda x, sampling: probs(x, sampling))
        found = [np.asarray(run(jnp.asarray(rows), each(Sampling(*pair)))) for pair in ASKED]
        assert run._cache_size() == 2  # with a top_p below 1, and without
    for (temperature, top_p), got in zip(ASKED, found, strict=True):
        wanted = expected(rows, temperature, top_p)
        clear = is_clear(rows, temperature, top_p)
        assert clear.sum() > 3
        # Quotients of up to 100 (of what is above 0), rounded once, change their exponential by
        # 100 roundings.
        rounding = 200 * np.finfo(rows.dtype).eps
        np.testing.assert_allclose(got[clear], wanted[clear], atol=rounding)
        assert np.all(np.isfinite(got))
        assert np.all(got >= 0)


def test_a_temperature_that_is_all_but_zero_takes_the_likeliest_and_shares_among_equals():
    run = jax.jit(probs)
    for temperature in (1e-9, 1e-40, 5e-324):
        got = np.asarray(run(logits(), each(Sampling(temperature))))
        np.testing.assert_array_equal(got[2], np.array([0, 1, 1, 0, 1, 0, 1]) / 4)
        np.testing.assert_array_equal(got[0], np.eye(7)[logits()[0].argmax()])


@pytest.mark.parametrize("asked", [(0.0,), (1e-9,), (1.0,), (1.0, 0.5), (1e39, 1e-46)])
def test_a_row_without_a_distribution_gives_no_token_and_others_are_as_they_were(asked):
    rows = logits()[:4]
    rows[1, 3], rows[3] = np.nan, -np.inf
    keys = jax.random.split(jax.random.key(0), 4)

    @jax.jit
    def run(keys, x):
        sampling = each(Sampling(*asked), len(x))
        made = probs(x, sampling)
        return made, sample(keys, made, sampling)

    made, tokens = map(np.asarray, run(keys, jnp.asarray(rows)))
    assert np.isnan(made[[1, 3]]).all()
    assert np.isfinite(made[[0, 2]]).all()
    assert tokens[[1, 3]].tolist() == [NONE, NONE]
    alone = run(keys[:1], jnp.asarray(logits()[:1]))[1]
    assert tokens[0] == alone[0] >= 0
    assert 0 <= tokens[2] < 7


def test_ids_beyond_the_vocabulary_do_not_matter_even_as_nan():
    rows = logits()[:1]
    rows[0, 5:] = np.nan, np.inf
    got = np.asarray(jax.jit(probs)(rows, each(Sampling(1e-9, 0.5, vocab=5), 1)))
    np.testing.assert_array_equal(got[0], np.eye(7)[rows[0, :5].argmax()])


TINY = 2.0**-130  # float32 has it only among the numbers that processors may take for zero


@pytest.mark.parametrize(("target", "draft", "drafted", "follows"), [
    ([0.0, 1.0, 0.0], [1.0, 0.0, 0.0], 0, {1}),  # p(d) = 0: always refused
    ([1.0, 0.0, 0.0], [1.0, 0.0, 0.0], 0, None),  # equal: always taken
    ([0.0, 0.5, 0.5], [TINY, 0.5, 0.5], 0, {1, 2}),  # no excess: drawn from p
    ([1 - TINY, TINY, 0.0], [1.0, 0.0, 0.0], 0, None),
    ([TINY, 1.0, 0.0], [0.0, 1.0, TINY], 2, {1}),  # an excess that is no number to draw from
    ([0.2, 0.3, 0.5], [np.nan] * 3, NONE, {0, 1, 2}),  # a module that says nothing
    ([np.nan] * 3, [0.2, 0.3, 0.5], 1, {NONE}),
    ([np.nan] * 3, [np.nan] * 3, NONE, {NONE}),
])
def test_verification_holds_where_shares_are_nothing_or_no_numbers(target, draft, drafted, follows):
    targets = jnp.asarray([target, [0.0, 0.0, 1.0]], jnp.float32)
    drafts, tokens = jnp.asarray([draft], jnp.float32), jnp.asarray([drafted], jnp.int32)
    keys = jax.random.split(jax.random.key(2), 200)
    accepted, extra = jax.jit(jax.vmap(lambda key: verify(key, targets, drafts, tokens)))(keys)
    if follows is None:
        assert set(accepted.tolist()) == {1}
        assert set(extra.tolist()) == {2}
    else:
        assert set(accepted.tolist()) == {0}
        assert set(extra.tolist()) == follows


CFG = dataclasses.replace(agreement.TINY, layers=1, dense_layers=1, moe=None, mtp_depth=1,
                          attention=agreement.GQA)


@pytest.mark.parametrize("is_drafting", [
    pytest.param(False, marks=pytest.mark.exhaustive), True])
def test_a_text_at_a_tiny_temperature_is_the_greedy_one(is_drafting):
    p = agreement.draw(transformer.specs(CFG), 2)
    prompts, greedy = [[1, 2, 3], [4]], Sampling(temperature=0, max_new_tokens=9)
    wanted = generate(p, CFG, prompts, greedy).completions
    for change in ({"temperature": 1e-12}, {"temperature": 1.0, "top_p": 1e-46}):
        other = dataclasses.replace(greedy, **change)
        options = Options(draft=is_drafting)
        assert generate(p, CFG, prompts, other, options).completions == wanted


@pytest.mark.parametrize(("temperature", "is_drafting"), [(0.0, False), (1.0, True)])
def test_a_model_that_says_nothing_is_refused_and_no_token_is_made_up(temperature, is_drafting):
    p = agreement.draw(transformer.specs(CFG), 2)
    broken = dataclasses.replace(p, head=p.head.at[:, 3].set(jnp.nan))
    heard = []
    with pytest.raises(UserError, match=r"logits after 0 new tokens of prompt 0 .*NaN"):
        generate(broken, CFG, [[1, 2]], Sampling(temperature=temperature, max_new_tokens=3),
                 Options(draft=is_drafting), lambda row, tokens: heard.append(tokens))
    assert not heard


@pytest.mark.parametrize(("field", "value"), [
    ("temperature", math.nan), ("temperature", math.inf), ("top_p", math.nan), ("top_p", -1e-46),
    ("seed", -1), ("seed", 2**63)])
def test_what_is_no_number_is_refused(field, value):
    with pytest.raises(UserError, match=f"{field}={value}"):
        Sampling(**{field: value})
