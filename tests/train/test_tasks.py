"""Tasks that are scored on the way change nothing of a run, and are what its checkpoint scores."""

import dataclasses

import pytest

from dsjax import infer
from dsjax.config.parallel import ParallelConfig
from dsjax.config.run import with_fields
from dsjax.errors import UserError
from dsjax.evaluate import evaluation, results, scored
from dsjax.evaluate.answers import Manner
from dsjax.evaluate.likelihood import Scorer
from dsjax.report.metrics import read_metrics
from dsjax.train.loop import train
from tests.evaluate.tasks.golden import DATA
from tests.train import crew
from tests.train.small_run import numbers, small_run, write_text

TASKS = {"tasks": "arc,mmlu,text", "tasks_data": str(DATA), "tasks_every": 6, "tasks_limit": 2}


def events(folder, text, output, **changes):
    run = dataclasses.replace(small_run(folder, text, steps=8), model=crew.MIXTURE, **changes)
    train(with_fields(run, train={"seq_len": run.train.seq_len * 4}, output=output))
    return read_metrics(folder / "metrics.jsonl")


@pytest.fixture(scope="module")
def scored_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    text = write_text(folder / "text.txt")
    return folder / "scored", events(folder / "scored", text, TASKS), text


def test_tasks_are_scored_when_they_are_due_and_change_nothing_else(scored_run, tmp_path):
    _, found, text = scored_run
    assert [one["step"] for one in found if one["kind"] == "tasks"] == [6, 8]
    plain = events(tmp_path / "plain", text, {})
    others = [one for one in found if one["kind"] != "tasks"]
    assert numbers(others) == numbers(plain)


def test_the_last_scores_are_those_of_the_checkpoint(scored_run):
    folder, found, _ = scored_run
    model = infer.load(folder)
    scorer = Scorer(model)
    last = [one for one in found if one["kind"] == "tasks"][-1]
    for own in evaluation.prepare(evaluation.named(TASKS["tasks"]), DATA, Manner(), 0, 2):
        every = {item.index for item in own.items}
        texts = scored.texts_of(own.task, own.items, model.tokenizer, scorer.context)
        records = {item.index: record for item, record in scored.ask(
            own.task, own.items, texts, every, scorer)}
        for name, one in results.of(own.task, own.items, records).measures.items():
            assert last[f"{own.task.name} {name}"] == pytest.approx(one.value, rel=1e-5)


@pytest.mark.exhaustive
def test_tasks_are_scored_on_a_layout(scored_run, tmp_path):
    _, found, text = scored_run
    layout = ParallelConfig(data=2, fsdp=2)
    spread = events(tmp_path / "spread", text, TASKS | {"tasks_every": 99}, parallel=layout)
    one, other = ([e for e in own if e["kind"] == "tasks"][-1] for own in (found, spread))
    assert other["text bits_per_byte"] == pytest.approx(one["text bits_per_byte"], rel=1e-4)


def test_texts_that_are_longer_than_the_rows_are_refused_at_the_start(scored_run, tmp_path):
    run = with_fields(small_run(tmp_path / "run", scored_run[2]), output=TASKS)
    with pytest.raises(UserError, match=r"asks for \d+ tokens, and the context is 16"):
        train(run)
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.parametrize(("names", "said"), [
    ("gsm8k", "--output.tasks gsm8k: it is answered in writing"), ("arcs", "no task 'arcs'"),
    ("arc_easy", "lacks a file of arc_easy")])
def test_tasks_that_cannot_be_scored_are_refused_at_the_start(names, said, scored_run, tmp_path):
    with pytest.raises(UserError, match=said):
        events(tmp_path / "run", scored_run[2], TASKS | {"tasks": names})
    assert not (tmp_path / "run").exists()
    with pytest.raises(UserError, match=r"--output\.tasks-data nowhere is not a folder"):
        events(tmp_path / "run", scored_run[2], TASKS | {"tasks_data": "nowhere"})
