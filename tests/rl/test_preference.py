"""A preference model learns what was preferred, by Bradley and Terry's likelihood, and judges
questions without an answer where rules judge the others.
"""

import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsjax.errors import UserError
from dsjax.layers.backend import single
from dsjax.model import transformer
from dsjax.rl import display, preference, rollout, weights
from dsjax.rl.objective import mismatch
from dsjax.rl.preference import Judge, Pair, PreferenceParams
from dsjax.rl.rollout import Asked
from dsjax.rl.tasks import catalog, task
from dsjax.rl.tasks.task import Problem
from dsjax.rl.update import Known
from tests.rl import small
from tests.rl.tasks.test_files import written

CFG = dataclasses.replace(small.MODEL, layers=2, init_std=0.15)


@pytest.fixture(scope="module")
def judge():
    vector = jax.random.normal(jax.random.key(3), (CFG.d_model,))
    return Judge(PreferenceParams(transformer.init(CFG, jax.random.key(2)), vector), CFG,
                 small.words())


def test_the_loss_of_a_pair_by_hand():
    """Rewards 2 and 0: P = e^2 / (e^2 + 1) = .8808, -log of it .1269; the other way 2.1269.

    Its slope in the first reward is P - 1, so that the preferred output's is raised.
    """
    found = preference.bradley_terry(jnp.array([2.0, 0.0, 1.0]), jnp.array([0.0, 2.0, 1.0]))
    np.testing.assert_allclose(found, [0.126928, 2.126928, math.log(2)], rtol=1e-6)
    slope = jax.grad(lambda r: preference.bradley_terry(r, jnp.zeros(())))(jnp.array(2.0))
    assert slope == pytest.approx(0.880797 - 1, abs=1e-6)


def test_a_reward_is_the_last_hidden_state_times_the_vector(judge):
    """Whatever the padding, and in whatever company."""
    words, (one, other) = small.words(), ("1+2=", "1+2+3+4=")
    ids = [*words.encode(one), *words.encode("12:3"), words.end_id]
    tokens = jnp.asarray([ids], jnp.int32)
    p = judge._p
    x = transformer.hidden(p.trunk, tokens, jnp.ones_like(tokens), CFG, single()).x
    want = float(x[0, -1] @ p.vector)
    found = judge([(other, ":0"), (one, "12:3")])
    assert found[1] == pytest.approx(want, rel=1e-5)  # float32 sums of 24 numbers
    assert found[0] != pytest.approx(want, rel=1e-2)


def test_a_model_learns_what_was_preferred_and_is_read_back(tmp_path, monkeypatch, judge):
    """Replies of commas are preferred to those of plus signs: pairs that were not seen agree."""
    drawn = task.problems(catalog.find("sum"), 3, "train", 0)
    pairs = [Pair(one.prompt, one.prompt[:-1].replace("+", ","), one.prompt[:-1])
             for one, _ in zip(drawn, range(40))]
    small.words().save(tmp_path / "tokenizer.json")
    monkeypatch.setattr(preference.weights, "model", lambda folder: CFG)
    monkeypatch.setattr(preference.weights, "load", lambda *_, **__: judge._p.trunk)
    said = []
    p, cfg, words = preference.train(
        tmp_path, pairs[:32], preference.Settings(steps=12, batch=8, learning_rate=3e-3),
        said.append)
    assert "step 12 of 12" in said[-1]
    assert float(said[-1].split(": ")[1].split()[0]) < 0.5 * math.log(2)
    assert preference.agreement(Judge(p, cfg, words), pairs[32:]) == 1
    turned = [Pair(one.prompt, one.rejected, one.chosen) for one in pairs[32:]]
    assert preference.agreement(Judge(p, cfg, words), turned) == 0
    preference.save(tmp_path / "judge", p, cfg, words)
    rows = [(one.prompt, one.chosen) for one in pairs[:3]]
    assert preference.load(tmp_path / "judge")(rows) == Judge(p, cfg, words)(rows)
    with pytest.raises(UserError, match=r"no preference model in .*name a folder"):
        preference.load(tmp_path)
    numbers = tmp_path / "judge" / preference.NUMBERS
    for broken in (b"", b"PK", numbers.read_bytes()[:-200]):
        numbers.write_bytes(broken)
        with pytest.raises(UserError, match="is no preference model"):
            preference.load(tmp_path / "judge")


def test_rules_judge_what_has_an_answer_and_the_model_the_rest():
    """Outputs of both kinds in their order; a reward that is none is 0, named and counted."""
    each = [Problem("1+2=", "", "3", (1,), "3"), Problem("1+2>", "", "", (2,), "")] * 2
    seen = []

    def judge(rows):
        seen.extend(rows)
        return [0.25, math.nan]

    asked = Asked(2, 24, 7, {"colon": 1.0}, judge=judge)
    found = rollout._scored(asked, each, [":3", "1", ":4", "2"])
    assert seen == [("1+2>", "1"), ("1+2>", "2")]
    assert [one.total for one in found] == [1, 0.25, 0, 0]
    assert [dict(one.parts) for one in found] == [
        {"colon": 1}, {"preference": 0.25}, {"colon": 0}, {"preference": 0}]
    assert [list(one.faults) for one in found] == [[], [], [], ["preference"]]


def test_a_rollout_has_both_kinds_and_their_means():
    found = small.engine()
    weights.exchange(found, small.params(), small.RUN, None)
    problems = [*small.asked(1), dataclasses.replace(small.asked(1)[0], reference="")]
    asked = Asked(4, 24, 7, {"colon": 1.0}, judge=lambda rows: [float(len(t)) for _, t in rows])
    made = rollout.roll_out(found, small.words(), problems, asked, (0, 0))
    judged = [len(text) for text in made.texts[4:]]
    assert made.rewards[4:].tolist() == judged
    same = jnp.asarray(made.engine)
    compared = mismatch.statistics(same, same, jnp.asarray(made.mask))
    told = display.values(made, Known(made.engine, None, compared, math.nan))
    assert told["rule_preference"] == pytest.approx(np.mean(judged))
    assert told["rule_colon"] == made.rewards[:4].mean()


def test_questions_without_an_answer_need_a_judge_and_are_in_no_exam(tmp_path):
    rows = [{"prompt": f"{i}+0=", "answer": str(i), "solution": "s"} for i in range(40)]
    path = written(tmp_path, [*rows, *({"prompt": f"{i}>", "answer": None} for i in range(30))])
    cfg = dataclasses.replace(small.RL, task=path, exam=path, eval_prompts=40)
    with pytest.raises(UserError, match=r"30 questions of .*'0>'.*--rl\.preference"):
        catalog.taught(cfg)
    cfg = dataclasses.replace(cfg, preference=str(tmp_path))
    asked = task.questions(catalog.taught(cfg), 8, (0,), 0, 70)
    assert sum(one.reference == "" for one in asked) == 30
    examined = catalog.examined(cfg, 0)
    assert sorted(one.prompt for one in examined) == sorted(row["prompt"] for row in rows)
    assert examined[0].long == f"s:{examined[0].answer}"
    (tmp_path / "open.jsonl").write_text(json.dumps(
        {"prompt": "a>", "answer": None}) + "\n")
    with pytest.raises(UserError, match=r"no question of .*has an answer.*--rl\.exam"):
        catalog.examined(dataclasses.replace(cfg, exam=str(tmp_path / "open.jsonl")), 0)
