"""Penalties lower what a row's own text holds, as the OpenAI API and CTRL define them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsjax.errors import UserError
from dsjax.infer.penalties import Text, penalized
from dsjax.infer.sample import Sampling, cut, probs, sampling_params

VOCAB = 7
ROWS = [Sampling(), Sampling(presence_penalty=1.5), Sampling(frequency_penalty=-0.5),
        Sampling(repetition_penalty=2.0),
        Sampling(presence_penalty=0.25, frequency_penalty=1.0, repetition_penalty=0.5)]


def by_hand(logits, tokens, prompt_len, upto, row):
    """One distribution's logits, token by token."""
    out = logits.astype(np.float64).copy()
    for token in range(VOCAB):
        seen = sum(t == token for t in tokens[: upto + 1])
        made = sum(t == token for t in tokens[prompt_len : upto + 1])
        if seen:
            by = row.repetition_penalty
            out[token] = out[token] / by if out[token] > 0 else out[token] * by
        out[token] -= row.frequency_penalty * made + row.presence_penalty * (made > 0)
    return out


def test_penalties_are_those_of_their_definitions():
    draw = np.random.default_rng(0)
    count = len(ROWS)
    logits = draw.normal(0, 2, (count, 3, VOCAB)).astype(np.float32)
    tokens = draw.integers(0, VOCAB, (count, 12)).astype(np.int32)
    prompt_len = draw.integers(1, 6, count).astype(np.int32)
    upto = np.sort(draw.integers(5, 12, (count, 3)), axis=1).astype(np.int32)
    params = sampling_params(ROWS)
    assert params.work == "any"
    text = Text(*map(jnp.asarray, (tokens, prompt_len, upto)))
    found = jax.jit(penalized)(jnp.asarray(logits), text, params)
    for i, row in enumerate(ROWS):
        for t in range(3):
            wanted = by_hand(logits[i, t], tokens[i], prompt_len[i], upto[i, t], row)
            np.testing.assert_allclose(found[i, t], wanted, rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(found[0], logits[0])  # asks for none


@pytest.mark.parametrize("row", [
    Sampling(top_k=3), Sampling(min_p=0.3), Sampling(top_k=4, top_p=0.6),
    Sampling(0.5, top_p=0.9, top_k=5, min_p=0.1)])
def test_cuts_leave_the_tokens_of_their_definitions(row):
    logits = np.random.default_rng(1).normal(0, 2, (4, 11)).astype(np.float32)
    found = np.asarray(jax.jit(probs)(logits, sampling_params([row] * 4)))
    for got, of_row in zip(found, logits.astype(np.float64)):
        p = np.exp(of_row / row.temperature)
        p /= p.sum()
        order = np.argsort(-p)[: row.top_k or len(p)]
        mass, kept = 0.0, []
        for token in order:
            if mass < row.top_p * p[order].sum() and p[token] >= row.min_p * p.max():
                kept.append(token)
            mass += p[token]
        assert set(np.flatnonzero(got)) == set(kept)
        np.testing.assert_allclose(got[kept], p[kept] / p[kept].sum(), rtol=1e-5)


def test_one_program_does_what_a_batch_asks_for():
    """`any` gives each row the bits it has among its like, whatever the others ask."""
    rows = [Sampling(0.0), Sampling(1.3), Sampling(0.7, top_p=0.8), Sampling(top_k=2),
            Sampling(min_p=0.2)]
    logits = jnp.asarray(np.random.default_rng(2).normal(0, 3, (5, 11)), jnp.float32)
    mixed = jax.jit(probs)(logits, sampling_params(rows, "any"))
    for i, row in enumerate(rows):
        alike = jax.jit(probs)(logits, sampling_params([row] * 5, "any"))
        np.testing.assert_array_equal(mixed[i], alike[i])
        own = jax.jit(probs)(logits, sampling_params([row] * 5))
        np.testing.assert_array_equal(mixed[i], own[i])


def test_one_token_at_least_is_kept():
    share = jnp.asarray([0.4, 0.35, 0.25])
    assert np.flatnonzero(cut(share, 1e-30, 1, 1.0)).tolist() == [0]


@pytest.mark.parametrize(("field", "value"), [
    ("top_k", 0), ("top_k", -1), ("min_p", 1.5), ("min_p", float("nan")), ("presence_penalty", 1e9),
    ("frequency_penalty", float("nan")), ("repetition_penalty", 0.0)])
def test_numbers_that_are_no_request_are_refused_by_name(field, value):
    with pytest.raises(UserError, match=field):
        Sampling(**{field: value})
