"""The page on reinforcement learning runs as it stands and names what there is."""

import importlib
import inspect
import re
from pathlib import Path

import numpy as np

from dsjax.rl import objective
from dsjax.rl.rewards import rules
from dsjax.rl.tasks import catalog

PAGE = (Path(__file__).parents[2] / "docs/rl.md").read_text()


def test_the_snippet_leaves_out_what_was_cut_off():
    """Rewards 1, 1, 0, 0: advantages +-0.5 / sqrt(1/3); three outputs count, -A each at ratio 1."""
    snippet, judging = re.findall(r"^```python\n(.*?)^```", PAGE, re.M | re.S)
    exec(judging, {})  # what it names is there; tests/rl/test_preference.py trains one
    names: dict = {}
    exec(snippet, names)
    assert names["rewards"].tolist() == [1, 1, 0, 0]
    np.testing.assert_allclose(names["value"], -0.5 * np.sqrt(3) / 3, rtol=1e-6)


def test_every_public_equation_has_its_row():
    table = PAGE.split("## The equations")[1].split("**")[0]
    named = set(re.findall(r"`(\w+\.\w+)`", table))
    helpers = {"advantage.constant_groups", "ratio.is_clipped", "weights.total", "support.support",
               "support.logits_within", "loss.targets"}
    public = set()
    for name in re.findall(r"(\w+)\s+\(", objective.__doc__ or ""):
        module = importlib.import_module(f"dsjax.rl.objective.{name}")
        public |= {f"{name}.{f}" for f, it in inspect.getmembers(module, inspect.isfunction)
                   if it.__module__ == module.__name__ and not f.startswith("_")}
    assert named == public - helpers
    assert helpers <= public


def test_every_rule_and_task_is_named():
    table = PAGE.split("| rule | 1 for |")[1].split("\n\n")[0]
    assert set(re.findall(r"^\| `(\w+)`", table, re.M)) == set(rules.RULES)
    told = PAGE.split("## Tasks")[1].split("each at")[0]
    assert set(re.findall(r"`(\w+)`", told)) == set(catalog.TASKS)
