"""An evaluation that was stopped goes on where it was, asks nothing twice, and ends the same."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from dsjax import infer
from dsjax.cli.process import engines
from dsjax.cli.process.engines import EngineFlags
from dsjax.errors import UserError
from dsjax.evaluate import answers, evaluation, identity
from dsjax.evaluate.answers import Manner
from dsjax.evaluate.evaluation import TASKS, Asking
from tests.evaluate import small
from tests.evaluate.tasks.golden import DATA

FLAGS = EngineFlags(slots=2, queue=2)
SAMPLED = Manner(temperature=0.8, max_new_tokens=9, samples=3, seed=5)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return small.make_run(tmp_path_factory.mktemp("small"))


@pytest.fixture(scope="module")
def asking(run):
    """A model with one engine and one scorer for all tests of the file."""
    model = infer.load(run)
    return Asking(model, lambda: engines.make(model, FLAGS, None), model.tokenizer.prompt)


class StopError(Exception):
    """The process was stopped."""


def evaluate(run, asking, out, names, manner=SAMPLED, stop=None, **settings):
    """Evaluate tasks; `stop` items are logged before the process is stopped."""
    asked = []

    def tell(name, done, total):
        asked.append((name, done))
        if stop is not None and len(asked) > stop:
            raise StopError

    asking.progress, said = tell, []
    asking.say = said.append
    prepared = evaluation.prepare(evaluation.named(names), DATA, manner, **settings)
    found = evaluation.evaluate(prepared, asking, out, identity.of(run, asking.model),
                                {"precision": None})
    return found, asked, said


def files(folder):
    return {path.name: path.read_text() for path in folder.iterdir() if path.suffix != ".lock"
            and not path.name.startswith(".")}


NAMES = "lambada,mmlu,arc,text,gsm8k"


@pytest.mark.parametrize("stop", [3, 10, 27])
def test_what_was_stopped_goes_on_and_leaves_the_files_of_what_was_not(run, asking, tmp_path, stop):
    whole, _, _ = evaluate(run, asking, tmp_path / "whole", NAMES, shots=0)
    with pytest.raises(StopError):
        evaluate(run, asking, tmp_path / "cut", NAMES, stop=stop, shots=0)
    logged = {path.name: path.read_text() for path in (tmp_path / "cut").glob("*.jsonl")}
    half = tmp_path / "cut" / "lambada.jsonl"
    half.write_text(half.read_text() + '{"index": 3, "as')  # a line that was being written
    again, asked, _ = evaluate(run, asking, tmp_path / "cut", NAMES, shots=0)
    before = {name.removesuffix(".jsonl"): text.count("\n") for name, text in logged.items()}
    for name in NAMES.split(","):
        (first, *_), *_ = [[done for task, done in asked if task == name]]
        assert first == before.get(name, 0), "an item was asked again"
    assert files(tmp_path / "cut") == files(tmp_path / "whole")
    assert [one.as_json() for one in again] == [one.as_json() for one in whole]
    for name in NAMES.split(","):  # though the longest are scored first
        log = (tmp_path / "whole" / f"{name}.jsonl").read_text().splitlines()
        assert [json.loads(line)["index"] for line in log] == list(range(len(log)))


def test_items_that_are_left_are_scored_in_the_batches_of_all(run, asking, tmp_path, monkeypatch):
    """A row's place in a batch may change its last bits."""
    evaluate(run, asking, tmp_path, "arc", limit=2)
    laid_out = []
    stream = asking.scorer.stream

    def spy(texts, wanted):
        laid_out.append((len(texts), len(wanted)))
        return stream(texts, wanted)

    monkeypatch.setattr(asking.scorer, "stream", spy)
    evaluate(run, asking, tmp_path, "arc")
    assert laid_out == [(15, 7)]  # four items, of which the last two have seven choices
    _, _, said = evaluate(run, asking, tmp_path, "arc", limit=1)
    assert "the result of 4 items and has that of 1 now" in said[-1]
    (found,), asked, said = evaluate(run, asking, tmp_path, "arc")
    assert (found.items, asked) == (4, [("arc", 4)])  # what the advice leads to
    assert not any("has that of" in one for one in said)


def test_a_line_that_was_cut_off_is_dropped_however_often(run, asking, tmp_path):
    for stop in (2, 2, None):
        if (log := tmp_path / "arc.jsonl").exists():
            log.write_text(log.read_text() + '{"index": 3, "as')
        try:
            evaluate(run, asking, tmp_path, "arc", stop=stop)
        except StopError:
            assert stop == 2
    found = [json.loads(line)["index"] for line in log.read_text().splitlines()]
    assert found == [0, 1, 2, 3]


def test_a_stop_text_ends_an_answer_and_is_no_part_of_it(run, asking):
    task = TASKS["gsm8k"]
    stops = ("e", "12")
    task = dataclasses.replace(task, generation=dataclasses.replace(task.generated, stop=stops))
    prepared = evaluation.prepare([task], DATA, Manner(0.9, max_new_tokens=32), shots=0)[0]
    words = asking.model.tokenizer
    fits = answers.prompts(task, prepared.items, words.prompt, prepared.manner, small.CONTEXT)
    found = [record["answers"][0] for _, record in answers.ask(
        task, prepared.items, fits, asking.engine, words, prepared.manner)]
    assert [one["finish_reason"] for one in found].count("stop") > 1
    assert not any(stop in one["text"] for one in found for stop in stops)
    assert all(one["tokens"] < 32 for one in found if one["finish_reason"] == "stop")
    assert asking.engine.stats().running == asking.engine.stats().waiting == 0


def test_a_second_start_asks_nothing(run, asking, tmp_path):
    evaluate(run, asking, tmp_path, "gsm8k,arc", shots=0)
    before = files(tmp_path)
    _, asked, _ = evaluate(run, asking, tmp_path, "gsm8k,arc", shots=0)
    assert asked == [("gsm8k", 4), ("arc", 4)]
    assert files(tmp_path) == before


def test_more_items_and_other_tasks_are_added(run, asking, tmp_path):
    evaluate(run, asking, tmp_path, "arc", limit=1)
    evaluate(run, asking, tmp_path, "lambada")
    _, asked, _ = evaluate(run, asking, tmp_path, "arc")
    assert asked[0] == ("arc", 1)
    kept = json.loads((tmp_path / "results.json").read_text())["tasks"]
    assert {name: one["items"] for name, one in kept.items()} == {"arc": 4, "lambada": 4}


@pytest.mark.parametrize(("change", "said"), [
    ({"shots": 1}, "shots 0, not 1"),
    ({"manner": Manner(max_new_tokens=9)}, "temperature 0.8, not 0.0"),
    ({"manner": Manner(0.8, 1.0, 9, 3, seed=6)}, "seed 5, not 6")])
def test_changed_settings_are_refused(run, asking, tmp_path, change, said):
    evaluate(run, asking, tmp_path, "gsm8k", **{"shots": 0, "limit": 1})
    with pytest.raises(UserError, match=f"gsm8k with {said}.*another --out"):
        evaluate(run, asking, tmp_path, "gsm8k", **{"shots": 0, "limit": 1} | change)


def test_another_model_is_refused(run, asking, tmp_path):
    evaluate(run, asking, tmp_path / "out", "arc", limit=1)
    other = small.make_run(tmp_path / "other", step=9)
    with pytest.raises(UserError, match=r"another model \(name small\d+, not other\)"):
        evaluate(other, asking, tmp_path / "out", "arc", limit=1)


def test_other_numbers_of_the_same_shapes_and_name_are_another_model(run, asking, tmp_path):
    evaluate(run, asking, tmp_path, "arc", limit=1)
    (leaf, *leaves), tree = jax.tree.flatten(asking.model.params)
    params = jax.tree.unflatten(tree, [leaf.at[(0,) * leaf.ndim].add(1e-3), *leaves])
    other = dataclasses.replace(asking, model=dataclasses.replace(asking.model, params=params))
    with pytest.raises(UserError, match=r"another model \(parameters"):
        evaluate(run, other, tmp_path, "arc", limit=1)


def test_a_fingerprint_is_of_numbers_and_their_places_on_any_layout(key):
    whole = {"w": jax.random.normal(key, (8, 6)), "n": jnp.arange(5, dtype=jnp.bfloat16)}
    mesh = jax.make_mesh((8,), ("x",))
    where = NamedSharding(mesh, PartitionSpec("x"))
    cut = whole | {"w": jax.device_put(whole["w"], where)}
    assert identity.fingerprint(cut) == identity.fingerprint(whole)
    for other in (whole["w"][::-1], whole["w"].T.reshape(8, 6), whole["w"] * 1.0000001):
        assert identity.fingerprint(whole | {"w": other}) != identity.fingerprint(whole)


def test_what_a_later_task_cannot_ask_is_refused_before_the_first_is_asked(
        run, asking, tmp_path, monkeypatch):
    monkeypatch.setattr(asking.scorer, "context", 3)
    asking.engine  # noqa: B018 (made before, as its answers would come first)
    with pytest.raises(UserError, match="of arc asks for"):
        evaluate(run, asking, tmp_path, "gsm8k,arc", shots=0)
    assert (tmp_path / "gsm8k.jsonl").read_text() == ""


def test_a_task_that_is_done_has_its_result_though_the_next_is_stopped(run, asking, tmp_path):
    with pytest.raises(StopError):
        evaluate(run, asking, tmp_path, "lambada,arc", stop=6)
    assert [*json.loads((tmp_path / "results.json").read_text())["tasks"]] == ["lambada"]


@pytest.mark.parametrize(("edit", "said"), [
    (lambda text: text.replace('"asked": "', '"asked": "f'), "line 1 answers another question"),
    (lambda text: "[]\n" + text, "line 1 is no record"),
    (lambda text: "{\n" + text, "line 1 is not JSON")])
def test_a_log_of_something_else_is_refused(run, asking, tmp_path, edit, said):
    evaluate(run, asking, tmp_path, "arc", limit=1)
    log = tmp_path / "arc.jsonl"
    log.write_text(edit(log.read_text()))
    with pytest.raises(UserError, match=f"arc.jsonl {said}"):
        evaluate(run, asking, tmp_path, "arc", limit=1)


def test_prompts_beyond_the_context_are_cut_counted_and_said(run, asking, tmp_path):
    (found,), _, said = evaluate(run, asking, tmp_path, "gsm8k", Manner())
    assert found.cut_items == 4
    assert any("answers have room for 32 tokens, not 256" in one for one in said)
    assert any("4 of 4 prompts were longer than the context" in one for one in said)
    record = json.loads((tmp_path / "gsm8k.jsonl").read_text().splitlines()[0])
    ids = asking.encode(evaluation.prepare([TASKS["gsm8k"]], DATA, Manner())[0].items[0].prompt)
    assert record["cut"] == len(ids) - small.CONTEXT // 2


def test_samples_give_shares_pass_at_k_and_votes(run, asking, tmp_path):
    (found,), _, _ = evaluate(run, asking, tmp_path, "gsm8k", shots=0)
    assert [*found.measures] == [
        f"exact_match,{filter}{more}" for filter in ("strict-match", "flexible-extract")
        for more in ("", " pass@2", " pass@3", " cons@3")]
    log = [json.loads(line) for line in (tmp_path / "gsm8k.jsonl").read_text().splitlines()]
    assert [len(one["answers"]) for one in log] == [3] * 4
    assert len({answer["text"] for one in log for answer in one["answers"]}) > 4
    assert all(answer["tokens"] <= 9 for one in log for answer in one["answers"])


def test_a_names_list_is_checked():
    assert [one.name for one in evaluation.named("arc, lambada,arc")] == ["arc", "lambada"]
    with pytest.raises(UserError, match="no task 'gsmk8', did you mean gsm8k"):
        evaluation.named("arc,gsmk8")
    with pytest.raises(UserError, match="--tasks is empty"):
        evaluation.named(" ,")


@pytest.mark.parametrize(("settings", "said"), [
    ({"samples": 4}, "--samples 4 at temperature 0"), ({"samples": 0}, "--samples 0"),
    ({"max_new_tokens": 0}, "max_new_tokens=0"), ({"top_p": 0.0}, "top_p=0"),
    ({"temperature": -1.0}, "temperature=-1")])
def test_manners_that_sample_nothing_are_refused(settings, said):
    with pytest.raises(UserError, match=said):
        Manner(**settings)
