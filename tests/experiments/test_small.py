"""Small runs: verdicts follow their rules in both directions, arms differ in what they say, a
killed command goes on at the next seed, and every study's quick form leaves its records alone.
"""

import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsjax.layers.router import RouterStats
from dsjax.model import loss as losses
from dsjax.model.count import count
from experiments.balance import kinds, methods
from experiments.common import command
from experiments.common.command import Asked
from experiments.common.small import answer, trials, verdicts
from experiments.common.study import ROOM, studies
from experiments.curriculum import arms as curriculum
from experiments.ladder import arms as ladder
from experiments.memory import steps as memory
from experiments.mla import arms as mla
from experiments.moe import arms as moe
from experiments.mtp import arms as mtp
from experiments.recipe import arms as recipe

TRAINED = {"moe": moe, "balance": methods, "mla": mla, "mtp": mtp, "curriculum": curriculum,
           "recipe": recipe, "ladder": ladder}


def test_an_interval_is_students_of_paired_differences():
    found = verdicts.paired([1.1, 2.2, 3.3], [1.0, 2.0, 3.0])
    # Differences .1, .2, .3: mean .2, deviation .1; t of two degrees is 4.303.
    assert found.mean == pytest.approx(0.2)
    assert found.half == pytest.approx(4.303 * 0.1 / math.sqrt(3))
    assert verdicts.paired([1.0], [2.0]).half == math.inf


@pytest.mark.parametrize(("low", "high", "lower", "no_higher"), [
    (-0.3, -0.1, "supports", "supports"), (0.1, 0.3, "contradicts", "contradicts"),
    (-0.1, 0.005, "inconclusive", "supports"), (-0.1, 0.1, "inconclusive", "inconclusive"),
    (0.001, 0.009, "contradicts", "supports")])
def test_a_verdict_is_the_side_on_which_the_whole_interval_lies(low, high, lower, no_higher):
    found = verdicts.Interval((low + high) / 2, (high - low) / 2)
    assert verdicts.lower(found) == lower
    assert verdicts.no_higher(found, 0.01) == no_higher


def test_a_claim_of_parts_falls_with_one_and_stands_with_all():
    assert verdicts.all_of(["supports", "supports"]) == "supports"
    assert verdicts.all_of(["supports", "inconclusive"]) == "inconclusive"
    assert verdicts.all_of(["inconclusive", "contradicts"]) == "contradicts"


def recorded(module, nats, **more):
    """Records of all arms of a study whose seeds scatter by a thousandth around given numbers.

    more: numbers for all arms, or by arm, and then 0 for those that are not named.
    """
    found, names = {}, {trial.name for trial in module.trials()}
    for trial in module.trials():
        of_seeds = [{"nats": nats.get(trial.name, 3.5) + 1e-3 * noise, "tokens": 307_200,
                     "cpu_seconds": 30.0 + seed, **{
                         key: value.get(trial.name, 0.0)
                         if isinstance(value, dict) and value.keys() <= names else value
                         for key, value in more.items()}}
                    for seed, noise in enumerate((0.0, 0.5, 0.2))]
        found[trial.name] = {"arm": trial.name, "claim": trial.change, "seeds": [0, 1, 2],
                             "parameters": 478_692, "flops_a_token": 1.5e6, "of_seeds": of_seeds,
                             "config": {"train": {"batch_size": 8, "seq_len": 128, "steps": 300},
                                        "precision": dataclasses.asdict(trial.run.precision),
                                        "optimizer": dataclasses.asdict(trial.run.optimizer)}}
    return found


def words(module, *given, **more):
    return {key: one["verdict"] for key, one in
            module.judge(recorded(module, *given, **more)).items()}


def test_verdicts_of_feed_forwards_and_attention_turn_with_the_numbers():
    assert words(moe, {"fine": 3.4, "unshared": 3.4}) == {
        "dense": "supports", "fine": "supports", "shared": "inconclusive"}
    assert words(moe, {"fine": 3.6, "unshared": 3.6})["dense"] == "contradicts"
    assert words(moe, {"fine": 3.6, "unshared": 3.5})["shared"] == "contradicts"
    assert words(mla, {"GQA": 3.6, "MQA": 3.7}) == {"mha": "supports", "gqa": "supports"}
    assert words(mla, {"MLA": 3.6, "GQA": 3.4}) == {"mha": "contradicts", "gqa": "contradicts"}


def test_verdicts_on_balance_need_a_collapse_and_an_even_load():
    even = {"dead": {"none": 2}, "starved": {"none": 5}, "experts": 48,
            "special": {"loss": 0.05, "bias-0.01": 0.1}}
    vio = {"none": 3.0, "loss": 0.3, "bias-0.01": 0.2}
    assert words(methods, {}, max_violation=vio, **even) == {
        "balance": "supports", "loss": "supports", "batch": "supports", "special": "supports"}
    kept = even | {"dead": {}, "starved": {}}
    assert words(methods, {}, max_violation=vio, **kept)["balance"] == "inconclusive"
    worse = vio | {"bias-0.01": 1.6}
    assert words(methods, {}, max_violation=worse, **even)["balance"] == "contradicts"
    assert words(methods, {"bias-0.01": 3.6}, max_violation=vio, **even)["loss"] == "contradicts"


def test_verdicts_on_further_tokens_lengths_and_schedule_turn_with_the_numbers():
    drafts = {"acceptance": [0.9, 0.5], "mtp_nats": [4.0]}
    assert words(mtp, {}, **drafts) == {
        "main": "supports", "weight": "supports", "accepted": "supports"}
    low = drafts | {"acceptance": [0.5, 0.2]}
    assert words(mtp, {"one": 3.6}, **low) == {
        "main": "contradicts", "weight": "contradicts", "accepted": "cannot speak"}
    assert words(curriculum, {"growing": 3.6}, late=3.5, by_position=[3.5] * 8) == {
        "loss": "contradicts", "late": "supports", "time": "inconclusive"}
    average = {"nats_average": {"no-decay": 3.51, "all": 3.5}}
    assert words(recipe, {"no-decay": 3.6, "no-ramp": 3.4}, **average) == {
        "ramp": "contradicts", "warmup": "inconclusive", "decay": "supports",
        "phases": "inconclusive", "average": "supports"}


def test_the_ladder_reads_tokens_to_a_loss_between_evaluations():
    run = {"curve": {"10": 4.0, "20": 3.5, "30": 3.4}}
    assert ladder.tokens_to(run, 3.75, batch=100) == pytest.approx(1500)
    assert ladder.tokens_to(run, 4.5, batch=100) == 1000
    assert math.isnan(ladder.tokens_to(run, 3.3, batch=100))
    found = recorded(ladder, {})
    for name, made in found.items():
        for one in made["of_seeds"]:
            one["curve"] = {"100": 4.0, "300": one["nats"] if name == "dense" else 3.0}
    told = ladder.judge(found)
    assert told["training"]["verdict"] == "supports"
    assert told["serving"]["verdict"] == "supports"
    assert told["times"]["verdict"] == "contradicts"
    found["FP8"]["of_seeds"][0]["curve"]["300"] = 3.9
    assert ladder.judge(found)["training"]["verdict"] == "contradicts"


def test_memory_is_judged_against_all_savings_and_none():
    found = {name: {"arguments": 100, "temporaries": 100} for name in memory.arms()}
    found |= {name: {"arguments": 100, "temporaries": 50} for name in ("all", "over 4 devices")}
    found["none"]["temporaries"] = 400
    found["over 4 devices"]["arguments"] = 40
    told = memory.judge(found)
    assert [told[key]["verdict"] for key in ("each", "quarter")] == ["supports", "contradicts"]
    found["none"]["temporaries"] = 500
    found["moments"] = found["all"]
    told = memory.judge(found)
    assert told["each"]["verdict"] == "contradicts"
    assert "moments" in told["each"]["number"]
    assert told["quarter"]["verdict"] == "supports", "150 of 600"


@pytest.mark.parametrize("name", TRAINED)
def test_tables_and_figures_are_made_of_records(name, tmp_path):
    module = TRAINED[name]
    curve = {str(step): 4.0 - step / 600 for step in (100, 200, 300)}
    found = recorded(module, {}, curve=curve, acceptance=[0.6, 0.3], mtp_nats=[4.0], late=3.5,
                     by_position=[3.5] * 8, nats_average=3.5, max_violation=0.5,
                     max_violation_step=0.6, dead=0, starved=1, experts=48, special=0.1,
                     by_kind=np.ones((3, 4, 16)).tolist())
    columns, rows = module.table(found)
    assert {len(row) for row in rows} == {len(columns)}
    assert len(rows) == len(module.trials())
    module.draw(found, tmp_path / "figure.svg")
    assert "<svg" in (tmp_path / "figure.svg").read_text()


def test_arms_are_equal_in_what_they_claim_to_be():
    flops = {t.name: count(t.run.model, 128).flops_per_token for t in moe.trials()}
    assert max(flops.values()) < 1.025 * min(flops.values()), "the router's share alone"
    attention = {t.name: next(p.params for p in count(t.run.model, 128).parts
                              if p.name == "attention") for t in mla.trials()}
    assert max(attention.values()) < 1.005 * min(attention.values())
    tokens = {t.name: t.run.train.steps for t in recipe.trials()}
    assert tokens["no-ramp"] < tokens["all"] == tokens["no-decay"]
    rungs = ladder.trials()
    assert [rung.run.model.moe is not None for rung in rungs] == [False, *[True] * 4]
    assert [rung.run.precision.matmul for rung in rungs] == ["fp32"] * 4 + ["fp8"]


def test_a_batch_wise_loss_sees_the_batch_and_not_its_rows():
    frequency = jnp.array([[[2.0, 0.0], [0.0, 2.0]]])  # two rows, each all for one expert
    affinity = jnp.array([[[0.9, 0.1], [0.1, 0.9]]])
    stats = RouterStats(jnp.ones((1, 2, 2)), frequency, affinity, jnp.ones((1, 2, 1)))
    assert methods.batch_balance(stats) == pytest.approx(1.0), "even over the batch"
    assert float(losses.sequence_balance(stats, None).mean()) == pytest.approx(1.8)


def test_lines_of_plays_have_kinds():
    assert kinds.kind_of("HAMLET.") == "speakers"
    assert kinds.kind_of("[Exit Ghost.]") == "stage directions"
    assert kinds.kind_of("Enter Hamlet") == "stage directions"
    assert kinds.kind_of("To be, or not to be, that is the question:") == "verse"
    assert kinds.kind_of("word " * 13) == "prose"
    assert kinds.kind_of("ACT I") is None
    assert kinds.kind_of("  ") is None


@pytest.fixture
def quick(tmp_path, monkeypatch):
    monkeypatch.setattr(command, "QUICK", tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", [*TRAINED, "memory"])
def test_every_quick_form_runs_and_leaves_the_records(name, quick, capsys):
    one = next(s for s in studies() if s.name == name)
    before = {p: p.read_bytes() for p in (ROOM / name).rglob("*.json")}
    part = one.parts[0].name
    assert command.main(one, argv=[part, "--quick"] if len(one.parts) > 1 else ["--quick"]) == 0
    assert {p: p.read_bytes() for p in (ROOM / name).rglob("*.json")} == before
    made = json.loads((quick / name / part / "records" / f"{one.parts[0].records[0]}.json"
                       ).read_text())
    assert made["is_quick"] is True
    assert made["rows"]


def test_a_killed_study_goes_on_at_the_next_seed(quick, tmp_path, monkeypatch):
    """Seeds that were done are read, whatever training would give now."""
    asked = Asked("run", tmp_path / "out", tmp_path / "runs")
    (trial,) = trials.quick(moe.trials())
    done: list[int] = []

    def train(trial, seed, programs, runs, measure):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(seed)
        return {"nats": 3.0 + seed, "cpu_seconds": 1.0}

    monkeypatch.setattr(trials, "_train", train)
    monkeypatch.setattr(trials, "_compiled", lambda trial: None)
    monkeypatch.setattr(jax, "clear_caches", lambda: None)
    with pytest.raises(KeyboardInterrupt):
        trials.train_all([trial], asked)
    assert not (asked.records / "arm-fine.json").exists(), "no record before the last seed"
    done = [0]
    (made,) = trials.train_all([trial], asked)
    assert done == [0, 2]
    assert answer.values(made, "nats") == [3.0, 4.0, 5.0]
    assert trials.train_all([trial], asked) == [json.loads(
        (asked.records / "arm-fine.json").read_text())]
    other = dataclasses.replace(trial, run=dataclasses.replace(trial.run, seed=7))
    with pytest.raises(ValueError, match="seed"):
        trials.train_all([other], asked)
