"""Decoding step by step from a cache says what the whole rows say, whoever else is in the batch."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsjax.config import load as configs
from dsjax.errors import UserError
from dsjax.infer import (
    Model,
    Options,
    Sampling,
    cache_bytes_per_token,
    decoding,
    default_backend,
    generate,
)
from dsjax.infer.bench import Load, decode_bench
from dsjax.layers.backend import single
from dsjax.model import transformer
from dsjax.numerics.precision import BF16
from tests import agreement

MOE = dataclasses.replace(agreement.TINY, layers=2, mtp_depth=0)
MODELS = {
    "latent, experts": MOE,
    "grouped, dense": dataclasses.replace(
        MOE, dense_layers=2, moe=None, attention=agreement.GQA, rope=agreement.YARN
    ),
    "direct, dense": dataclasses.replace(
        MOE, dense_layers=2, moe=None, attention=agreement.MLA_DIRECT
    ),
}
PROMPTS = [[1, 2, 3], [4], [5, 6, 7, 8, 9, 10, 0, 1, 2, 3, 4]]
GREEDY = Sampling(temperature=0, max_new_tokens=12)
# float32 rounds at 2^-24; sums of ten to a hundred terms and five layers of conditioning leave two
# digits less.
ROUNDING = 1e-5


def model(name):
    return MODELS[name], agreement.draw(transformer.specs(MODELS[name]), 2)


def whole_logits(p, cfg, rows):
    """Logits [B, T, V] of rows by the expanded form without a cache, padded on the right."""
    length = max(map(len, rows))
    tokens = jnp.asarray([row + [0] * (length - len(row)) for row in rows], jnp.int32)
    return np.asarray(jax.jit(lambda t: transformer.logits(p, t, cfg))(tokens))


@pytest.mark.parametrize("name", [
    "latent, experts", pytest.param("grouped, dense", marks=pytest.mark.exhaustive)])
def test_greedy_rows_of_a_batch_follow_the_uncached_model_and_go_as_each_alone(name):
    cfg, p = model(name)
    batch = generate(p, cfg, PROMPTS, GREEDY).completions
    rows = [prompt + list(done.tokens) for prompt, done in zip(PROMPTS, batch)]
    logits = whole_logits(p, cfg, rows)
    for row, prompt, out in zip(rows, PROMPTS, logits):
        steps = out[len(prompt) - 1 : len(row) - 1]
        second, best = np.sort(steps, axis=-1)[:, -2:].T
        assert (best - second).min() > 100 * ROUNDING, "a tie: choose another seed"
        assert row[len(prompt) :] == steps.argmax(-1).tolist()
    assert len({done.tokens for done in batch}) == len(batch)
    alone = generate(p, cfg, PROMPTS[2:], GREEDY).completions
    assert alone == batch[2:]


@pytest.mark.parametrize("name", list(MODELS))
def test_the_absorbed_form_from_an_empty_cache_gives_the_expanded_logits(name):
    cfg, p = model(name)
    tokens = np.random.default_rng(0).integers(0, cfg.vocab, (2, 9)).tolist()

    @jax.jit
    def one_by_one(tokens):
        def step(cache, at):
            position = jnp.full((2, 1), at)
            x, cache = transformer.hidden_cached(
                p, tokens[:, at][:, None], position, cache, cfg, default_backend()
            )
            return cache, transformer.head(p, x[:, 0])

        cache = transformer.empty_cache(cfg, 2, 9, default_backend())
        return jax.lax.scan(step, cache, jnp.arange(9))[1].swapaxes(0, 1)

    agreement.close(one_by_one(jnp.asarray(tokens)), whole_logits(p, cfg, tokens), ROUNDING)


def test_a_sampled_text_does_not_depend_on_how_it_is_cut_into_programs():
    cfg, p = model("grouped, dense")
    sampling = Sampling(temperature=1.5, top_p=0.95, max_new_tokens=11, seed=4)
    heard = {row: [] for row in range(3)}

    def hear(row, tokens):
        heard[row] += tokens

    by_three = generate(p, cfg, PROMPTS, sampling, Options(steps=3), hear).completions
    by_eight = generate(p, cfg, PROMPTS, sampling).completions
    assert by_three == by_eight
    assert [tuple(tokens) for tokens in heard.values()] == [done.tokens for done in by_three]
    assert {len(done.tokens) for done in by_three} == {11}
    other = generate(p, cfg, PROMPTS, dataclasses.replace(sampling, seed=5)).completions
    assert other != by_eight


def test_a_row_ends_with_its_stop_id_and_the_others_go_on():
    cfg, p = model("latent, experts")
    whole = generate(p, cfg, PROMPTS, GREEDY).completions
    stop = whole[0].tokens[5]
    stopping = dataclasses.replace(GREEDY, stop_ids=(stop,))
    stopped = generate(p, cfg, PROMPTS, stopping).completions
    for before, after in zip(whole, stopped):
        cut = before.tokens.index(stop) + 1 if stop in before.tokens else None
        assert after.tokens == before.tokens[:cut]
        assert after.finish_reason == ("stop" if cut else "length")
    assert stopped[0].finish_reason == "stop"


def test_no_token_is_dropped_in_generation_whatever_the_training_capacity():
    cfg, p = model("latent, experts")
    small = dataclasses.replace(cfg, moe=dataclasses.replace(cfg.moe, capacity_factor=0.1))
    few, all_of_them = (generate(p, one, PROMPTS, GREEDY).completions for one in (small, cfg))
    assert few == all_of_them


def test_in_bfloat16_products_each_chosen_token_is_the_best_to_their_rounding():
    cfg, p = model("latent, experts")
    options = Options(decoding(single(BF16)))
    done = generate(p, cfg, PROMPTS[2:], GREEDY, options).completions[0]
    logits = whole_logits(p, cfg, [PROMPTS[2] + list(done.tokens)])[0, len(PROMPTS[2]) - 1 : -1]
    chosen = logits[np.arange(GREEDY.max_new_tokens), done.tokens]
    # Operands keep 8 bits; some ten products lie on a path to a logit, and two logits are compared.
    assert (logits.max(-1) - chosen).max() < 2 * 10 * 2.0**-8 * np.abs(logits).max()


def test_bad_requests_are_refused_in_a_sentence():
    cfg, p = model("latent, experts")
    for arguments, sentence in [
        ({"prompts": []}, "no prompts"),
        ({"prompts": [[1], []]}, "prompt 1 has no tokens"),
        ({"prompts": [[1, 11]]}, "ids from 1 to 11, but the model knows 0 to 10"),
        ({"sampling": [GREEDY]}, "3 prompts have 1 samplings"),
        ({"options": Options(context=22)},
         "prompt 2 has 11 tokens and max_new_tokens=12 asks for 23 positions"),
        ({"options": Options(draft=True)}, "mtp_depth=0"),
    ]:
        with pytest.raises(UserError, match=sentence):
            generate(p, cfg, **{"prompts": PROMPTS, "sampling": GREEDY, **arguments})


def test_v3_caches_70272_bytes_a_token_and_its_module_one_layer_more():
    cfg = configs.load("deepseek_v3").model
    backend = single(BF16, jnp.bfloat16)
    assert cache_bytes_per_token(cfg, backend) == 70_272
    assert cache_bytes_per_token(cfg, backend, depth=1) == 70_272 + (512 + 64) * 2


def test_the_decode_benchmark_counts_rows_and_steps():
    cfg, p = model("direct, dense")
    load = Load(batch=2, context=5, steps=3, repeats=3)
    found = decode_bench(Model(cfg, p, None, 64, default_backend(), None), load)
    assert found["tok_s"] == pytest.approx(2 / found["ms_per_step"] * 1e3)
    assert found["tokens_per_pass"] == 1
    assert found["cache_bytes_per_token"] == 2 * (8 + 4) * 4
