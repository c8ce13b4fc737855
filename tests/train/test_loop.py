"""A run that is killed and started again equals one that never stopped, bit for bit.

Also: what a run says and leaves behind when it is told to stop, or meets another model's
checkpoint. Processes are real and so are the signals.
"""

import dataclasses
import io
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

from dsjax.checkpoint import files
from dsjax.checkpoint.store import Store
from dsjax.config.loss import LossConfig
from dsjax.config.schedule import LearningRate
from dsjax.config.stored import run_to_json
from dsjax.errors import UserError
from dsjax.report.metrics import read_metrics
from dsjax.train import loop
from dsjax.train import state as states
from dsjax.train.folder import resume
from tests.train import crew
from tests.train.small_run import numbers, small_run, write_text


def a_run(*args, **kwargs):
    """A run of one layer of experts: processes compile it sooner."""
    return dataclasses.replace(small_run(*args, **kwargs), model=crew.MIXTURE)


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    return write_text(tmp_path_factory.mktemp("text") / "words.txt")


def start(run, folder: Path, *flags: str) -> subprocess.Popen:
    """Start `dsjax train` on a run in a process of its own."""
    config = folder / f"{run.name}-{Path(run.output.folder).name}.py"
    run_to_json(run, config.with_suffix(".json"))
    config.write_text(crew.CONFIG.format(path=str(config.with_suffix(".json"))))
    env = os.environ | {"JAX_NUM_CPU_DEVICES": "1", "PYTHONPATH": str(crew.ROOT)}
    command = [sys.executable, "-m", "dsjax", "train", str(config), *flags]
    return subprocess.Popen(command, env=env, text=True, stdout=subprocess.PIPE,
                            stderr=subprocess.STDOUT)


def finish(process: subprocess.Popen) -> str:
    output, _ = process.communicate(timeout=300)
    return output


def wait_for_step(run, number: int, process: subprocess.Popen) -> None:
    """Return when the metrics file has a line of step `number`."""
    path = Path(run.output.folder) / "metrics.jsonl"
    began = time.monotonic()
    while time.monotonic() - began < 240 and process.poll() is None:
        if path.exists() and any(e["step"] >= number for e in read_metrics(path, "train")):
            return
        time.sleep(0.01)
    raise AssertionError(f"step {number} never came: {process.stdout.read()}")


def final_state(run):
    abstract = {"train": states.abstract(run), "ema": states.abstract(run).params}
    return Store(Path(run.output.folder) / "checkpoints", 3).restore(abstract)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, text):
    folder = tmp_path_factory.mktemp("whole")
    run = a_run(folder / "out", text)
    process = start(run, folder)
    output = finish(process)
    assert process.returncode == 0, output
    return run, output


@pytest.mark.parametrize("kill_at", [
    pytest.param(4, marks=pytest.mark.exhaustive), 13])  # before a checkpoint, after two
def test_a_run_killed_with_9_continues_bit_for_bit(kill_at, tmp_path, text, uninterrupted):
    run = a_run(tmp_path / "out", text)
    first = start(run, tmp_path)
    wait_for_step(run, kill_at, first)
    first.kill()
    first.communicate()
    second = start(run, tmp_path)
    output = finish(second)
    assert second.returncode == 0, output

    whole, _ = uninterrupted
    events, expected = (numbers(read_metrics(Path(r.output.folder) / "metrics.jsonl"))
                        for r in (run, whole))
    assert events == expected
    (step, got, extra), (_, wanted, wanted_extra) = final_state(run), final_state(whole)
    assert step == run.train.steps
    assert extra == wanted_extra
    jax.tree.map(np.testing.assert_array_equal, got, wanted)


def test_it_learns_and_leaves_its_pictures(uninterrupted):
    run, output = uninterrupted
    losses = [e["loss"] for e in read_metrics(Path(run.output.folder) / "metrics.jsonl", "train")]
    assert losses[-1] < losses[0] - 1
    for name in ("loss.png", "experts.png", "config.json", "tokenizer.json"):
        assert (Path(run.output.folder) / name).stat().st_size > 0
    assert "held out:" in output
    assert "bits per byte" in output


@pytest.mark.exhaustive  # test_faults.py tells one of two processes
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_run_told_to_stop_saves_and_says_so(number, tmp_path, text):
    run = a_run(tmp_path / "out", text, steps=100000)
    process = start(run, tmp_path)
    wait_for_step(run, 3, process)
    process.send_signal(number)
    output = finish(process)
    assert process.returncode == 128 + number, output
    done = Store(tmp_path / "out" / "checkpoints", 3).latest()
    saved = output.index(f"{number.name}: saved after step {done}")
    assert output.index("writing the checkpoint") < saved
    assert "Traceback" not in output


def test_a_second_ctrl_c_ends_at_once_and_leaves_whole_checkpoints(tmp_path, text):
    """While checkpoints are written one after the other; the third and all others are no matter."""
    run = a_run(tmp_path / "out", text, steps=100000)
    run = dataclasses.replace(run, output=dataclasses.replace(run.output, save_every=1))
    process = start(run, tmp_path)
    wait_for_step(run, 3, process)
    began = time.monotonic()
    while process.poll() is None and time.monotonic() - began < 60:
        process.send_signal(signal.SIGINT)
        time.sleep(0.002)
    output = finish(process)
    assert process.returncode == 128 + signal.SIGINT, output
    assert "Traceback" not in output
    assert "interrupted" in output or "SIGINT: saved after step" in output
    kept = tmp_path / "out" / "checkpoints"
    assert files.steps(kept)
    for step in files.steps(kept):
        files.verify(kept / files.name(step))


def test_another_models_checkpoint_is_refused_in_a_sentence(uninterrupted, tmp_path):
    run, _ = uninterrupted
    process = start(run, tmp_path, "--model.d-model", "28")
    output = finish(process)
    assert process.returncode == 2, output
    last = output.strip().splitlines()[-1]
    assert last.startswith("dsjax: ")
    assert "24" in last
    assert "28" in last
    assert "--output.folder" in last


def test_a_run_starts_from_the_parameters_of_another(tmp_path, text, uninterrupted):
    """In bfloat16, as imported ones are; a step that moves nothing leaves them as they came."""
    source, _ = uninterrupted
    given = jax.tree.map(lambda a: a.astype(jnp.bfloat16), final_state(source)[1]["train"].params)
    kept = Store(tmp_path / "source" / "checkpoints", 1)
    kept.save(0, {"params": given}, {})
    kept.close()
    shutil.copy(Path(source.output.folder) / "tokenizer.json", tmp_path / "source")
    run = dataclasses.replace(
        a_run(tmp_path / "out", text, steps=1), init_from=str(tmp_path / "source"),
        learning_rate=LearningRate(peak=1e-30, constant_steps=1), loss=LossConfig(bias_speed=0.0),
    )
    outcome = loop.train(run, Console(file=io.StringIO()))
    got = final_state(run)[1]["train"].params
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, np.asarray(b, np.float32), atol=1e-20),
                 got, given)
    assert {a.dtype for a in jax.tree.leaves(got)} == {np.dtype(np.float32)}
    # bfloat16 moves weights by 2^-9 of their size; an untrained model is above log(300) = 5.7
    final = read_metrics(Path(source.output.folder) / "metrics.jsonl", "final")[0]
    assert outcome.heldout.nll == pytest.approx(final["nll"], rel=0.01)


def test_weights_made_with_other_settings_of_equal_shapes_are_spoken_of(tmp_path, text,
                                                                        uninterrupted):
    """Shapes agree where another rotary base or another choice of experts means other numbers."""
    source, _ = uninterrupted
    said = []
    run = dataclasses.replace(a_run(tmp_path / "out", text), init_from=source.output.folder)
    resume.begin(run, said.append)
    assert not any("settings" in sentence for sentence in said)
    rope = dataclasses.replace(run.model.rope, theta=500.0)
    resume.begin(dataclasses.replace(run, model=dataclasses.replace(run.model, rope=rope)),
                 said.append)
    assert f"model.rope.theta {run.model.rope.theta} -> 500.0" in said[-1]


def test_another_models_parameters_are_no_start(tmp_path, text, uninterrupted):
    source, _ = uninterrupted
    run = a_run(tmp_path / "out", text)
    wide = dataclasses.replace(run, model=dataclasses.replace(run.model, d_model=28),
                               init_from=source.output.folder)
    with pytest.raises(UserError, match=r"embed is float32\[300, 24\] there") as raised:
        loop.train(wide, Console(file=io.StringIO()))
    assert str(raised.value).endswith("or other weights")
