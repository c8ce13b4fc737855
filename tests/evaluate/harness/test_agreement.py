"""lm-evaluation-harness gets from a model of dsjax the numbers of `dsjax evaluate`, to the bit."""

import json

import pytest

pytest.importorskip("lm_eval", reason="needs pip install '.[lm-eval]'")

from dsjax.evaluate import evaluation, identity
from dsjax.evaluate.answers import Manner
from dsjax.evaluate.evaluation import Asking
from tests.evaluate.harness.asked import CONTEXT, NAMES, ask, manager
from tests.evaluate.tasks.golden import golden
from tests.golden.make_tasks import public_form

pytestmark = pytest.mark.filterwarnings("ignore")  # the harness's and its libraries' own


def samples(found, name):
    """The harness's items of a task by number, each filter's metrics by its name."""
    made = {}
    for sample in found["samples"][f"local_{NAMES[name]}"]:
        one = made.setdefault(sample["doc_id"], {**sample, "measures": {}})
        of = "" if sample["filter"] == "none" else f",{sample['filter']}"
        one["measures"] |= {f"{metric}{of}": sample[metric] for metric in sample["metrics"]}
    return made


def test_the_harness_and_dsjax_evaluate_agree_on_every_item_and_measure(lm, run, here):
    there = ask(lm, NAMES)
    asking = Asking(lm.model, lambda: lm.engine, lm.model.tokenizer.prompt, context=CONTEXT)
    prepared = evaluation.prepare(evaluation.named(",".join(NAMES)), here / "data" / "eval",
                                  Manner(max_new_tokens=24))
    ours = evaluation.evaluate(prepared, asking, here / "out", identity.of(run, lm.model), {})
    compared = 0
    for result in ours:
        name = result.task.name
        log = [json.loads(line) for line in (here / "out" / f"{name}.jsonl").open()]
        theirs = samples(there, name)
        assert len(log) == len(theirs) == result.items
        for record in log:
            sample = theirs[record["index"]]
            if name == "gsm8k":
                (answer,) = record["answers"]
                assert sample["resps"] == [[answer["text"]]]
                own = {key: one["is_right"] for key, one in answer["verdicts"].items()}
            elif name == "text":
                assert sample["filtered_resps"] == [record["logprob"]]
                continue
            elif name == "lambada":
                assert sample["filtered_resps"] == [(record["logprob"], record["is_greedy"])]
                own = record["measures"] | {"perplexity": record["logprob"]}
            else:
                assert sample["filtered_resps"] == list(
                    zip(record["logprobs"], record["is_greedy"], strict=True))
                own = record["measures"]
            assert sample["measures"] == own
            compared += len(own)
        for key, measure in result.measures.items():
            metric, _, filter = key.partition(",")
            results, of = there["results"][f"local_{NAMES[name]}"], filter or "none"
            assert results[f"{metric},{of}"] == pytest.approx(measure.value, rel=1e-14)
            if "perplexity" not in key and name != "text":  # the harness draws those errors
                assert results[f"{metric}_stderr,{of}"] == pytest.approx(measure.stderr, rel=1e-12)
    assert compared == 4 * (2 + 2 + 2 + 2)


@pytest.mark.parametrize("is_flat", [True, False])
@pytest.mark.parametrize("name", ["arc", "hellaswag", "lambada", "gsm8k"])
def test_local_task_files_ask_what_the_harnesss_own_ask(here, name, is_flat):
    """Of AI2's flat rows and of the hub's."""
    if not is_flat:
        for split, rows in public_form()[NAMES[name]].items():
            for file in (here / "data" / "eval").glob(f"{name}*-{split[:3]}*.jsonl"):
                file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = manager().load([f"local_{NAMES[name]}"])["tasks"][f"local_{NAMES[name]}"]
    task.set_fewshot_seed(1234)
    task.build_all_requests()
    made = {}
    for instance in task.instances:
        made.setdefault(instance.doc_id, []).append(list(instance.args))
    wanted = [item["requests"] for item in golden()[NAMES[name]]["items"]]
    assert [made[i] for i in sorted(made)] == wanted
