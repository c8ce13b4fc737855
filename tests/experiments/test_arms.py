"""An arm is trained once: its record is read again, a stopped one goes on, another config is
refused; and curves are compared as the V3 report does.
"""

import dataclasses
import json
import shutil
import signal

import numpy as np
import pytest

from dsjax.train import loop
from experiments.common import arms
from experiments.common.arms import Arm
from tests.train import crew, small_run


def test_smoothing_weighs_the_past_by_nine_tenths():
    expected = [2.0, 0.9 * 2 + 0.1 * 4, 0.9 * (0.9 * 2 + 0.1 * 4) + 0.1 * 1]
    np.testing.assert_allclose(arms.smooth([2.0, 4.0, 1.0]), expected, rtol=1e-15)


def test_the_difference_is_of_smoothed_curves_relative_to_the_base():
    base = [4.0, 3.0, 2.0]
    found = arms.relative_difference([1.01 * v for v in base], base)
    np.testing.assert_allclose(found, 0.01, rtol=1e-12)
    assert arms.relative_difference([2.0, 3.0], [2.0, 4.0])[1] < 0


@pytest.fixture
def arm(tmp_path):
    text = small_run.write_text(tmp_path / "words.txt")
    run = small_run.small_run(tmp_path / "unused", text, steps=3)
    output = dataclasses.replace(run.output, eval_every=0, save_every=2)
    return Arm("plain", "nothing", dataclasses.replace(run, model=crew.DENSE, output=output))


def told_to_stop_while_tracing(run):
    """A backend that sends this process a signal, as ctrl-C would, when the step is traced."""
    plain = loop.backends.for_run(run)

    def constrain(x, axes):
        signal.raise_signal(signal.SIGTERM)
        return plain.layout.constrain(x, axes)

    return dataclasses.replace(plain, layout=dataclasses.replace(plain.layout,
                                                                 constrain=constrain))


@pytest.mark.slow
def test_a_stopped_arm_goes_on_and_a_finished_one_is_read(arm, tmp_path):
    records, runs = tmp_path / "records", tmp_path / "runs"
    stopping = dataclasses.replace(arm, backend=told_to_stop_while_tracing(arm.run))
    with pytest.raises(KeyboardInterrupt):
        arms.train(stopping, records, runs, "python -m x")
    assert not records.exists()
    made = arms.train(arm, records, runs, "python -m x")
    never_stopped = arms.train(arm, tmp_path / "other", tmp_path / "others", "python -m x")
    assert made["next_token"] == never_stopped["next_token"]
    assert len(made["next_token"]) == 3
    assert list(made["heldout_nats"]) == ["3"]

    (kept,) = records.iterdir()
    assert kept.name == "small_run-64-plain-seed0.json"
    shutil.rmtree(runs)
    assert arms.train(arm, records, runs, "python -m x") == json.loads(kept.read_text())
    assert not runs.exists()
    other = dataclasses.replace(arm, name="other")
    assert arms.kept([arm, other], records) == ([json.loads(kept.read_text())],
                                                ["small_run-64-other-seed0"])

    rate = dataclasses.replace(arm.run.learning_rate, peak=1e-3)
    other = dataclasses.replace(arm, run=dataclasses.replace(arm.run, learning_rate=rate))
    with pytest.raises(ValueError, match=r"run\.learning_rate\.peak=0\.003, not 0\.001; remove it"):
        arms.train(other, records, runs, "python -m x")


def test_a_field_added_since_does_not_make_a_record_another_run(arm):
    config = arms.plain(arm.run)
    older = json.loads(json.dumps(config))
    del older["precision"]["activations"]
    assert arms.changed(older, config, "run") is None
    assert arms.changed(config, older, "run") == "run.precision.activations=float32, not None"


def test_an_arm_belongs_to_one_process_at_a_time(arm, tmp_path):
    with arms.claimed(arm, tmp_path) as first, arms.claimed(arm, tmp_path) as second:
        assert (first, second) == (True, False)
    with arms.claimed(arm, tmp_path) as after:
        assert after
