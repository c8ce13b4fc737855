"""A conversion that was stopped or killed goes on where it was, and no chunk is written twice."""

import filecmp
import os
import shutil
import signal
import subprocess
import sys
import time

import jax
import pytest

from dsjax import weights
from dsjax.checkpoint import files
from dsjax.checkpoint.arrays import Chunked
from dsjax.released import convert as conversion
from dsjax.released import hf
from tests.released.test_hf import CFG, PARAMS, same, same_files

QUIET = {"say": lambda sentence: None}


class Stop(Exception):  # noqa: N818
    pass


def after(count):
    """A progress function that stops the conversion after so many pieces."""
    calls = iter(range(10**9))

    def progress(done, total):
        if next(calls) == count:
            raise Stop

    return progress


def test_no_write_is_under_way_when_a_conversion_was_interrupted(source, tmp_path, monkeypatch):
    writing, write = set(), Chunked.write

    class Late:
        def __init__(self, written):
            self._written = written
            writing.add(self)

        def result(self):
            writing.remove(self)
            return self._written.result()

    monkeypatch.setattr(Chunked, "write", lambda *args: Late(write(*args)))
    with pytest.raises(Stop):
        conversion.to_run(source, tmp_path / "run", progress=after(2), **QUIET)
    assert not writing


def test_an_interrupted_conversion_goes_on_where_it_stopped(source, tmp_path):
    conversion.to_run(source, tmp_path / "whole", **QUIET)
    with pytest.raises(Stop):
        conversion.to_run(source, tmp_path / "run", progress=after(60), **QUIET)
    assert not (tmp_path / "run").exists()
    there = {p: p.stat().st_mtime_ns for p in (tmp_path / ".run.partial").rglob("c/**/*")
             if p.is_file()}
    assert len(there) > 50
    conversion.to_run(source, tmp_path / "run", **QUIET)
    for path, written in there.items():
        at = path.relative_to(tmp_path / ".run.partial").as_posix()
        kept = tmp_path / "run" / at.replace(files.PARTIAL, "step-")
        assert kept.stat().st_mtime_ns == written
    names = [p.relative_to(tmp_path / "run") for p in (tmp_path / "run").rglob("c/**/*")]
    for name in names:
        a, b = tmp_path / "run" / name, tmp_path / "whole" / name
        assert not a.is_file() or filecmp.cmp(a, b, shallow=False)
    same(weights.load(tmp_path / "run"), PARAMS)
    assert not list(tmp_path.glob(".*"))


def test_another_source_is_not_gone_on_with(source, tmp_path):
    with pytest.raises(Stop):
        conversion.to_run(source, tmp_path / "run", progress=after(60), **QUIET)
    shutil.rmtree(source)
    hf.save(source, CFG, jax.tree.map(lambda a: -a, PARAMS))
    conversion.to_run(source, tmp_path / "run", **QUIET)
    same(weights.load(tmp_path / "run"), jax.tree.map(lambda a: -a, PARAMS))


def test_an_interrupted_export_keeps_its_finished_files(source, tmp_path, monkeypatch):
    from dsjax.released import write

    monkeypatch.setattr(write, "SHARD", 1)
    conversion.to_run(source, tmp_path / "run", **QUIET)
    conversion.to_released(tmp_path / "run", tmp_path / "whole", **QUIET)
    with pytest.raises(Stop):
        conversion.to_released(tmp_path / "run", tmp_path / "out", progress=after(100), **QUIET)
    assert not (tmp_path / "out").exists()
    kept = {p.name: p.stat().st_mtime_ns for p in (tmp_path / ".out.partial").glob("model-*")}
    assert kept
    conversion.to_released(tmp_path / "run", tmp_path / "out", **QUIET)
    assert all((tmp_path / "out" / n).stat().st_mtime_ns == t for n, t in kept.items())
    same_files(tmp_path / "out", tmp_path / "whole")


@pytest.mark.slow
def test_a_killed_process_leaves_what_the_next_one_goes_on_from(source, tmp_path):
    command = [sys.executable, "-m", "dsjax", "convert", "hf-to-dsjax", str(source), "run"]
    slow = "import time; from dsjax.released import read as h; f = h._read\n" \
        "h._read = lambda *a: (time.sleep(0.02), f(*a))[1]\n" \
        f"from dsjax.cli import main; main.main({command[3:]!r})"
    env = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": os.getcwd()}
    first = subprocess.Popen([sys.executable, "-c", slow], cwd=tmp_path, env=env)
    until = time.monotonic() + 120
    while time.monotonic() < until and len(list((tmp_path / ".run.partial").rglob("c/**/*"))) < 50:
        time.sleep(0.05)
    first.send_signal(signal.SIGKILL)
    first.wait()
    assert not (tmp_path / "run").exists()
    assert subprocess.run(command, cwd=tmp_path, env=env, check=False).returncode == 0
    same(weights.load(tmp_path / "run"), PARAMS)
