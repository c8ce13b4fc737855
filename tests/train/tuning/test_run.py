"""A run of which a part learns: what learns, what rests to the bit, what readers get of it."""

import dataclasses
import shutil

import jax
import numpy as np
import pytest

from dsjax import params, weights
from dsjax.checkpoint.store import Store
from dsjax.config.stored import run_from_json
from dsjax.errors import UserError
from dsjax.infer import load
from dsjax.model import transformer, tuned
from dsjax.report import metrics
from dsjax.train import sharding
from tests.train.small_run import numbers
from tests.train.tuning import small_sft


def learnt(run, folder):
    """The part in the newest checkpoint."""
    opened = Store(folder / "checkpoints", 9)
    try:
        step, state, extra = opened.restore({"train": sharding.abstract(run, None)})
    finally:
        opened.close()
    return step, jax.device_get(state["train"]), extra


def test_adapters_learn_and_are_merged_for_every_reader(lora, base):
    """Merged and apart are one function, to float32's rounding of sums of some 100 products."""
    run, said = lora
    out = base.parent / "lora"
    assert "adapters of rank 3, alpha 6, of attention, ffn, shared_expert, expert" in said
    losses = [event["loss"] for event in metrics.read_metrics(out / "metrics.jsonl", "train")]
    assert losses[-1] < losses[0] - 0.1
    _, state, extra = learnt(run, out)
    assert extra[weights.BASE] == weights.identity(base)
    frozen = weights.load(base, choice=weights.Choice(model=run.model), say=lambda said: None)
    joined = tuned.join(run, state.params, frozen)
    tokens = np.arange(40, dtype=np.int32)[None]
    model = load(out)
    apart, merged = (jax.jit(transformer.logits, static_argnums=2)(p, tokens, run.model)
                     for p in (joined, model.params))
    np.testing.assert_allclose(merged, apart, rtol=0, atol=2e-5 * float(np.abs(apart).max()))
    assert np.abs(apart - np.asarray(jax.jit(transformer.logits, static_argnums=2)(
        frozen, tokens, run.model))).max() > 0.1


def test_what_is_read_is_the_frozen_matrix_and_the_adapters_product(lora, base):
    run, _ = lora
    _, state, _ = learnt(run, base.parent / "lora")
    before, after = (small_sft.held(folder, run.model) for folder in (base, base.parent / "lora"))
    specs = dict(params.paths(transformer.specs(run.model)))
    for name, was in before.items():
        if name not in state.params:
            np.testing.assert_array_equal(after[name], was)
            continue
        lead, a, b = specs[name].batch_dims, state.params[name].a, state.params[name].b
        a = a.reshape(*a.shape[:lead], -1, 3)
        product = a @ b.reshape(*b.shape[: lead + 1], -1)
        np.testing.assert_allclose(after[name], was + 2.0 * product.reshape(was.shape), atol=1e-6)


def test_experts_that_are_not_chosen_and_all_else_keep_their_bits(experts, base):
    run, said = experts
    out = base.parent / "experts"
    kept = run_from_json(out / "config.json")
    chosen = kept.experts.by_layer
    assert f"by layer {kept.experts.chosen}" in said
    assert list(chosen) == [1]
    assert 0 < len(chosen[1]) < 6
    before, after = (small_sft.held(folder, run.model) for folder in (base, out))
    for name, was in before.items():
        if ".experts." not in name:
            np.testing.assert_array_equal(after[name], was, err_msg=name)
            continue
        for expert in range(6):
            is_same = np.array_equal(after[name][0, expert], was[0, expert])
            assert is_same == (expert not in chosen[1]), (name, expert)


@pytest.mark.parametrize("kind", [
    "lora", pytest.param("experts", marks=[pytest.mark.slow, pytest.mark.exhaustive])])
def test_a_run_that_goes_on_is_the_run_that_never_stopped(kind, request, base, tmp_path):
    run, _ = request.getfixturevalue(kind)
    out = base.parent / kind
    shutil.copytree(out, tmp_path / "again")
    shutil.rmtree(tmp_path / "again" / "checkpoints" / "step-00000004")
    run = dataclasses.replace(
        run, output=dataclasses.replace(run.output, folder=str(tmp_path / "again")))
    assert "resuming after step 2" in small_sft.tune(run)
    run = run_from_json(out / "config.json")
    (step, one, _), (_, other, _) = learnt(run, tmp_path / "again"), learnt(run, out)
    assert step == 4
    jax.tree.map(np.testing.assert_array_equal, one, other)
    told = [numbers(metrics.read_metrics(folder / "metrics.jsonl"))
            for folder in (tmp_path / "again", out)]
    assert told[0] == told[1]


def test_a_checkpoint_holds_the_part_alone(lora, base):
    whole = sum(f.stat().st_size for f in base.glob("*.safetensors"))
    run, _ = lora
    _, state, _ = learnt(run, base.parent / "lora")
    held = params.size(tuned.specs(run))
    assert sum(a.size for a in jax.tree.leaves(state.params)) == held
    assert 4 * held < whole


def test_weights_that_are_not_those_it_stands_on_are_refused(lora, base, tmp_path):
    shutil.copytree(base.parent / "lora", tmp_path / "moved")
    text = (tmp_path / "moved" / "config.json").read_text()
    for there, said in ((tmp_path / "gone", "is not there; put it back"),
                        (tmp_path / "other", "holds other weights")):
        (tmp_path / "moved" / "config.json").write_text(text.replace(str(base), str(there)))
        if "other" in str(there):
            small_sft.make_base(there, is_fp8=True)
        with pytest.raises(UserError, match=said):
            weights.load(tmp_path / "moved")


def test_a_tuned_folder_is_a_start_for_its_model_alone(lora, base):
    run, _ = lora
    weights.refuse_another(base.parent / "lora", run.model)
    assert weights.model(base.parent / "lora") == run.model
    other = dataclasses.replace(run.model, dense_dim=33)
    with pytest.raises(UserError, match="another model"):
        weights.refuse_another(base.parent / "lora", other)
