"""From nothing the recipe for a laptop comes to answer nearly always right, by working problems out
as the base seldom did.
"""

import os
import subprocess
import sys

import pytest

from dsjax.report.metrics import read_metrics
from tests.train import crew


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.parametrize("seed", [0])
def test_accuracy_climbs_and_outputs_grow(seed, tmp_path):
    """Bounds of rl by hand on three bases: from .2 to .4 sampled, to .96 and more; 19 tokens."""
    command = [sys.executable, "-m", "dsjax", "rl", "r1_zero_tiny", "--seed", str(seed),
               "--output.folder", str(tmp_path / "run")]
    said = subprocess.run(command, env=os.environ | {"PYTHONPATH": str(crew.ROOT)}, text=True,
                          cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert said.returncode == 0, said.stdout
    print(said.stdout)
    exams = read_metrics(tmp_path / "run" / "metrics.jsonl", "exam")
    base, final = exams[0], exams[-1]
    assert (base["step"], final["step"]) == (0, 45)
    assert base["exam_sampled"] < 0.45
    assert base["exam_length"] < 10
    assert final["exam_sampled"] > 0.93
    assert final["exam_greedy"] > 0.97
    assert final["exam_length"] > 18
    assert final["exam_worked"] > 0.9
    for event in read_metrics(tmp_path / "run" / "metrics.jsonl", "train"):
        assert event["mismatch_k3"] < 1e-9
        assert event["equal_routes"] > 0.999
