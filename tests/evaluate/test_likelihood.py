"""A text's score is the model's, whoever else is scored and wherever the model lies."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from dsjax.config.parallel import ParallelConfig
from dsjax.config.run import PrecisionConfig
from dsjax.errors import UserError
from dsjax.evaluate.likelihood import RIVALS, SHORTEST, Rows, Scorer, Text, score_rows
from dsjax.infer import Model, default_backend
from dsjax.layers.backend import single
from dsjax.model import transformer
from dsjax.parallel import mesh as meshes
from dsjax.parallel import rules
from dsjax.runtime.backend import for_decoding
from tests import agreement
from tests.infer.offload import models as offloaded

MOE = dataclasses.replace(agreement.V3_MOE, experts=8, groups=4)
CFG = dataclasses.replace(agreement.TINY, layers=2, moe=MOE)
PARAMS = agreement.draw(transformer.specs(CFG), 2)
CONTEXT = 40
SMALL = 4 * SHORTEST  # tokens of a batch: four rows of the shortest


def made(context=CONTEXT, cfg=CFG, precision="fp32", layout=None):
    """A model of small size, as `infer.load` makes it."""
    layout = layout or ParallelConfig()
    mesh = None if layout.devices == 1 else meshes.make_mesh(layout)
    p = PARAMS
    if mesh is not None:
        p = jax.device_put(p, rules.used_shardings(transformer.specs(CFG), mesh))
    backend = default_backend() if precision == "fp32" and mesh is None else for_decoding(
        cfg, PrecisionConfig(precision), layout, mesh)
    return Model(cfg, p, None, context, backend, mesh, layout)  # type: ignore[arg-type]


@functools.cache
def shared(precision="fp32"):
    """A scorer of small batches on one device, whose programs are compiled once."""
    return Scorer(made(precision=precision), tokens=SMALL)


def texts():
    """Texts of many lengths, in both shapes, and five that differ in their last token alone."""
    draw = np.random.default_rng(3)

    def ids(count):
        return tuple(draw.integers(0, CFG.vocab, count).tolist())

    lengths = [(1, 1), (1, 6), (7, 1), (20, 9), (3, 20), (25, 15), (12, 28), (31, 2), (2, 2)]
    base = ids(6)
    return [Text(ids(a), ids(b)) for a, b in lengths] + [Text(base, (i,)) for i in range(5)]


@jax.jit
def all_logprobs(ids):
    """From all logits at once, [1, T, V]."""
    return jax.nn.log_softmax(transformer.logits(PARAMS, ids, CFG), -1)


def by_logits(text):
    """Log-probabilities of a continuation; what follows a place does not change it."""
    ids = np.zeros((1, CONTEXT), np.int32)
    whole = (*text.context, *text.continuation)[:-1]
    ids[0, : len(whole)] = whole
    logprobs = np.asarray(all_logprobs(ids))[0, len(text.context) - 1 : len(whole)]
    chosen = logprobs[np.arange(len(text.continuation)), list(text.continuation)]
    return chosen, logprobs.argmax(-1) == np.array(text.continuation)


def test_scores_are_those_of_the_models_logits():
    """Float32's rounding: logits of size 10 to one part in 2^20, over sums of some 30 terms."""
    scorer = shared()
    for text, found in zip(texts(), scorer(texts()), strict=True):
        logprobs, is_greedy = by_logits(text)
        np.testing.assert_allclose(found.logprobs, logprobs, atol=2e-5, rtol=0)
        assert found.is_greedy.tolist() == is_greedy.tolist()
        assert found.cut == 0
    assert scorer.programs == 2  # one for each shape


@pytest.mark.parametrize("precision", [
    "fp32", "bf16", pytest.param("fp8", marks=pytest.mark.exhaustive)])
def test_neighbors_and_empty_places_change_no_bit(precision):
    scorer = shared(precision)
    first, *others = [text for text in texts() if scorer.shape(len(text.context) + 20)[0] == 4][:4]
    (alone,) = scorer([first])
    for company in (others, others[::-1], [*others, *texts()[-5:]]):
        beside = scorer([first, *company])[0]
        assert alone.logprobs.tobytes() == beside.logprobs.tobytes()
        assert alone.is_greedy.tolist() == beside.is_greedy.tolist()


def test_another_place_in_a_batch_changes_roundings_alone():
    """A product's last rows may be another kernel's: float32's unit, over logits of size 10."""
    scorer = shared()
    backwards = scorer(texts()[::-1])[::-1]
    for here, there in zip(scorer(texts()), backwards, strict=True):
        np.testing.assert_allclose(here.logprobs, there.logprobs, rtol=0, atol=1e-5)
        assert here.is_greedy.tolist() == there.is_greedy.tolist()


def test_texts_that_are_wanted_alone_have_the_bits_of_all():
    scorer = shared()
    whole = dict(scorer.stream(texts()))
    some = dict(scorer.stream(texts(), {3, 5, len(texts()) - 1}))
    assert sorted(some) == [3, 5, len(texts()) - 1]
    assert all(whole[i].logprobs.tobytes() == one.logprobs.tobytes() for i, one in some.items())
    assert dict(scorer.stream(texts(), ())) == {}


def test_texts_that_differ_in_their_last_token_share_a_row():
    scorer = Scorer(made(), tokens=SHORTEST)  # a row a batch
    runs = []
    run = scorer._run
    scorer._run = lambda *args: runs.append(0) or run(*args)  # type: ignore[method-assign]
    scorer(texts()[-5:])
    assert len(runs) == 2  # RIVALS of them, and the fifth
    assert RIVALS == 4


@pytest.mark.parametrize("layout", [
    ParallelConfig(data=2, fsdp=2, expert=2),
    pytest.param(ParallelConfig(expert=8, expert_nodes=2), marks=pytest.mark.exhaustive)], ids=str)
def test_scores_on_eight_devices_are_those_of_one(layout):
    one = shared()(texts())
    eight = Scorer(made(layout=layout), tokens=SHORTEST)(texts())
    for here, there in zip(one, eight, strict=True):
        np.testing.assert_allclose(here.logprobs, there.logprobs, rtol=1e-5, atol=1e-5)
        assert here.is_greedy.tolist() == there.is_greedy.tolist()


@pytest.mark.exhaustive  # tests/infer/offload holds what they compute
def test_experts_in_a_cache_score_as_experts_on_the_device():
    own = offloaded.backends()[0]
    asked = [text for text in texts() if len(text.context) + len(text.continuation) < 32]
    whole = Model(offloaded.CFG, offloaded.PARAMS, None, 32, own, None)  # type: ignore[arg-type]
    apart = dataclasses.replace(whole, params=offloaded.trunk(own), experts=offloaded.cache(9))
    for here, there in zip(Scorer(whole, tokens=SMALL)(asked),
                           Scorer(apart, tokens=SMALL)(asked), strict=True):
        np.testing.assert_allclose(here.logprobs, there.logprobs, rtol=1e-5, atol=1e-5)


def test_no_token_is_dropped_for_lack_of_an_experts_capacity():
    tight = dataclasses.replace(CFG, moe=dataclasses.replace(MOE, capacity_factor=0.25))
    draw = np.random.default_rng(7).integers(0, CFG.vocab, (2, 3, SHORTEST)).astype(np.int32)
    rows = Rows(draw[0], np.ones_like(draw[0]), draw[1], draw[1, :, :RIVALS],
                np.full(3, SHORTEST - 1, np.int32))
    found = [jax.jit(functools.partial(score_rows, cfg=cfg, backend=single()))(PARAMS, rows)
             for cfg in (CFG, tight)]
    jax.tree.map(np.testing.assert_array_equal, *found)


def test_a_context_that_is_too_long_is_cut_from_the_left_and_counted():
    draw = np.random.default_rng(5)
    ids = tuple(draw.integers(0, CFG.vocab, 60).tolist())
    scorer = shared()
    long, exact = scorer([Text(ids[:55], ids[55:]), Text(ids[60 - CONTEXT - 1 : 55], ids[55:])])
    assert (long.cut, exact.cut) == (60 - CONTEXT - 1, 0)
    assert long.logprobs.tobytes() == exact.logprobs.tobytes()


@pytest.mark.parametrize(("text", "said"), [
    (Text((), (1,)), "0 tokens of context"), (Text((1,), ()), "0 to score"),
    (Text((1,), (11,)), "ids from 1 to 11"), (Text((1,), (1,) * 41), "41 tokens to score")])
def test_what_cannot_be_scored_is_refused(text, said):
    with pytest.raises(UserError, match=said):
        Scorer(made(), tokens=SMALL)([Text((1,), (2,)), text])


def test_a_context_of_one_position_is_refused():
    with pytest.raises(UserError, match="--context 1"):
        Scorer(made(), 1)
