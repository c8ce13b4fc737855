"""Prompts, requests and verdicts are lm-evaluation-harness's to the character."""

import numpy as np
import pytest

from dsjax.evaluate import measures
from dsjax.evaluate.evaluation import TASKS
from dsjax.evaluate.grade import code
from dsjax.evaluate.likelihood import Scores
from dsjax.evaluate.tasks import latex
from dsjax.evaluate.tasks.task import continuations
from tests.evaluate.tasks.golden import NAMES, SUBJECTS, equal, golden, items
from tests.golden.make_tasks import ANSWERS, said


def there_and_here(name):
    """The harness's items beside ours, MMLU's by subject and number of examples."""
    if name != "mmlu":
        return list(zip(golden()[NAMES[name]]["items"], items(name), strict=True))
    pairs = []
    for shots in (0, 5):
        ours = items("mmlu", shots)
        theirs = [one for subject in SUBJECTS
                  for one in golden()[f"mmlu_{subject} 5" if shots else f"mmlu_{subject}"]["items"]]
        pairs += list(zip(theirs, ours, strict=True))
    return pairs


def scores(context, continuation):
    """Scores as if the stand-in model of the golden data had made them."""
    logprob, is_greedy = said(context, continuation)
    return Scores(np.array([logprob]), np.array([is_greedy]))


@pytest.mark.parametrize("name", [*NAMES, "mmlu"])
def test_prompts_and_continuations_are_the_harnesss(name):
    task = TASKS[name]
    for theirs, ours in there_and_here(name):
        if task.kind == "generated":
            ((prompt, settings),) = theirs["requests"]
            assert ours.prompt == prompt
            assert list(task.generated.stop) == settings["until"]
            assert task.generated.max_new_tokens == settings.get("max_gen_toks", 256)
            assert not settings["do_sample"]
        else:
            own = [[ours.prompt, one] for one in continuations(task, ours.question)]
            assert own == theirs["requests"]


@pytest.mark.parametrize("name", ["arc", "hellaswag", "mmlu"])
def test_ranked_choices_are_judged_as_the_harness_does(name):
    for theirs, ours in there_and_here(name):
        found = measures.ranked(
            [scores(ours.prompt, one) for one in continuations(TASKS[name], ours.question)],
            ours.question.choices, ours.question.gold)
        assert {key: found[key] for key in theirs["metrics"]} == theirs["metrics"]


def test_last_words_are_judged_as_the_harness_does():
    logprobs = []
    for theirs, ours in there_and_here("lambada"):
        one = scores(ours.prompt, ours.question.target)
        assert {"perplexity": one.total, "acc": one.is_all_greedy} == theirs["metrics"]
        logprobs.append(one.total)
    whole = golden()["lambada_openai"]["results"]
    assert measures.perplexity(logprobs).value == pytest.approx(whole["perplexity,none"], rel=1e-12)


@pytest.mark.parametrize("name", ["gsm8k", "math500", "math500_minerva"])
def test_answers_are_graded_as_the_harness_does(name):
    task, answers = TASKS[name], ANSWERS[NAMES[name]]
    rights = {}
    for (theirs, ours), text in zip(there_and_here(name), answers, strict=True):
        found = task.generated.grade(ours.question, text)
        for key, verdict in found.items():
            rights.setdefault(key, []).append(verdict.is_right)
        left_out = {"exact_match"} if "minerva" in name else set()
        shared = theirs["metrics"].keys() & found.keys()
        assert shared == theirs["metrics"].keys() - left_out
        assert {key: found[key].is_right for key in shared} == {
            key: bool(theirs["metrics"][key]) for key in shared}
    assert any(any(own) != all(own) for own in rights.values()), "no metric tells answers apart"


@pytest.mark.parametrize(("one", "other", "is_equal", "form", "other_form"), equal())
def test_normal_forms_are_the_harnesss(one, other, is_equal, form, other_form):
    assert latex.normal_form(one) == form
    assert latex.normal_form(other) == other_form
    assert latex.are_equal(one, other) == is_equal


def test_results_and_errors_are_the_harnesss():
    results = golden()["gsm8k"]["results"]
    for name in TASKS["gsm8k"].metrics:
        values = [one["metrics"][name] for one in golden()["gsm8k"]["items"]]
        found = measures.mean(values)
        metric, filter = name.split(",")
        assert found.value == results[name]
        assert found.stderr == pytest.approx(results[f"{metric}_stderr,{filter}"], rel=1e-12)


@pytest.mark.parametrize("shots", ["0", "5"])
def test_subjects_are_pooled_as_the_harness_pools_them(shots):
    names = [f"mmlu_{subject}{' 5' * (shots == '5')}" for subject in SUBJECTS]
    parts = [measures.mean([one["metrics"]["acc"] for one in golden()[name]["items"]])
             for name in names]
    found, wanted = measures.pooled(parts), golden()["mmlu"][shots]
    assert found.value == pytest.approx(wanted["acc"], rel=1e-12)
    assert found.stderr == pytest.approx(wanted["stderr"], rel=1e-12)
    assert found.count == 10


def test_programs_are_composed_of_the_same_parts():
    for name in ("humaneval", "mbpp"):
        programs = golden()[NAMES[name]]["programs"]
        for ([reference], [[program]]), ours, text in zip(
                programs, items(name), ANSWERS[name], strict=True):
            facts = ours.question.facts
            if name == "humaneval":
                made = code.human_eval(facts["prompt"], text, facts["test"], facts["entry_point"])
            else:
                made = code.mbpp(text, (), facts["tests"])
            assert made.text == program
            assert made.check.text == reference
