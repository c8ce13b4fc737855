"""Metrics outlive crashes: damaged lines are left out, kept beside and said; one writer a file."""

import json
import os
import resource
import signal

import pytest

from dsjax.errors import UserError
from dsjax.report import metrics
from dsjax.report.metrics import MetricWriter, read_metrics

LINE = b'{"step": %d, "kind": "train", "loss": 3.0}\n'
DAMAGE = {
    "a power cut": b"\0" * 40 + b"\n",
    "NUL bytes before a line": b"\0" * 9 + LINE % 2,
    "half a line": b'{"step": 2, "ki\n',
    "half a line and the next": b'{"step": 2, "ki' + LINE % 3,
    "not UTF-8": b"\xff\xfe\n",
    "a number": b"3\n",
    "a list": b"[1, 2]\n",
    "null": b"null\n",
    "no step": b'{"kind": "train", "loss": 3.0}\n',
    "no kind": b'{"step": 2, "loss": 3.0}\n',
    "a step that is a word": b'{"step": "2", "kind": "train"}\n',
    "a step that is true": b'{"step": true, "kind": "train"}\n',
    "half a step": b'{"step": 1.5, "kind": "train"}\n',
    "a step below 0": b'{"step": -2, "kind": "train"}\n',
    "a step of many digits": b'{"step": %s, "kind": "train"}\n' % (b"9" * 5000),
    "a kind that is a list": b'{"step": 2, "kind": ["train"]}\n',
    "a loss in words": b'{"step": 2, "kind": "train", "loss": "low"}\n',
    "an object": b'{"step": 2, "kind": "train", "loss": {"a": 1}}\n',
    "a number no float holds": b'{"step": 2, "kind": "train", "loss": 1%s}\n' % (b"0" * 400),
    "nested without end": b'{"step": 2, "kind": "train", "loss": ' + b"[" * 10**5 + b"\n",
}


def write(writer, steps):
    for step in steps:
        writer.write(step, "train", {"loss": 1.0})


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_line_is_left_out_kept_beside_and_said(damage, tmp_path):
    path, said = tmp_path / "metrics.jsonl", []
    path.write_bytes(LINE % 1 + damage + LINE % 4 + LINE % 9)
    assert [e["step"] for e in read_metrics(path, say=said.append)] == [1, 4, 9]
    assert "1 damaged line" in said[0]
    writer = MetricWriter(path, 4, say=said.append)
    writer.write(5, "train", {"loss": 2.0})
    writer.close()
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 4, 5]
    assert (tmp_path / "metrics.jsonl.damaged").read_bytes() == damage
    assert "metrics.jsonl.damaged" in said[1]


def test_what_is_set_aside_twice_is_kept_twice(tmp_path):
    path = tmp_path / "metrics.jsonl"
    for bad in (b"3\n", b"4\n"):
        path.write_bytes(bad + LINE % 1)
        MetricWriter(path, 1, say=lambda _: None).close()
    assert (tmp_path / "metrics.jsonl.damaged").read_bytes() == b"3\n4\n"


def test_of_a_step_that_is_there_twice_the_last_stays(tmp_path):
    path, said = tmp_path / "metrics.jsonl", []
    path.write_bytes(LINE % 1 + LINE % 2 + (LINE % 1).replace(b"3.0", b"2.5"))
    MetricWriter(path, 2, say=said.append).close()
    assert [(e["step"], e["loss"]) for e in map(json.loads, path.read_text().splitlines())] == [
        (2, 3.0), (1, 2.5)]
    assert "twice" in said[0]


def test_what_a_killed_process_leaves_is_no_damage(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(LINE % 1 + LINE % 2 + b'{"step": 3, "kind": "tra')
    assert len(read_metrics(path, say=pytest.fail)) == 2
    MetricWriter(path, 2, say=pytest.fail).close()
    assert path.read_bytes() == LINE % 1 + LINE % 2


def test_numbers_that_no_writer_wrote_are_null(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1, "kind": "train", "a": NaN, "b": 1e999, "c": [-Infinity, 1]}\n')
    assert read_metrics(path) == [{"step": 1, "kind": "train", "a": None, "b": None,
                                   "c": [None, 1]}]


def test_a_second_writer_is_refused_and_changes_nothing(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(LINE % 1 + LINE % 2)
    first = MetricWriter(path, 1)  # replaces the file: the lock goes with it
    for resumed in (1, None):
        with pytest.raises(UserError, match=r"metrics.jsonl is being written by another process"):
            MetricWriter(path, resumed)
    first.write(2, "train", {"loss": 0.5})
    assert [e["step"] for e in read_metrics(path)] == [1, 2]
    first.close()
    MetricWriter(path, 2).close()
    assert len(read_metrics(path)) == 2


@pytest.mark.parametrize("kind", ["folder", "pipe", "dead link into nowhere"])
def test_what_is_no_file_is_refused_in_a_sentence(kind, tmp_path):
    path = tmp_path / "metrics.jsonl"
    make = {"folder": path.mkdir, "pipe": lambda: os.mkfifo(path),
            "dead link into nowhere": lambda: path.symlink_to("no/where")}[kind]
    make()
    for act in (lambda: MetricWriter(path, 1), lambda: MetricWriter(path),
                lambda: read_metrics(path)):
        with pytest.raises(UserError, match=r"metrics.jsonl"):
            act()


def test_a_full_disk_is_a_sentence_and_what_was_written_can_be_read(tmp_path):
    """The size of files is limited, which fails as a full disk does: in the middle of a line."""
    path = tmp_path / "metrics.jsonl"
    former = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    writer = MetricWriter(path)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (500, former[1]))
        with pytest.raises(UserError, match=r"cannot be written .*make room"):
            write(writer, range(50))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, former)
        signal.signal(signal.SIGXFSZ, handler)
        writer.close()
    steps = [e["step"] for e in read_metrics(path)]
    assert steps == list(range(len(steps)))
    assert steps


def test_loads_of_other_layers_are_left_out():
    loads = [[[1, 2], [3, 4]], [[1, 2]], None, "words", [[1, 2], [3]], [[1, None], [2, 3]]]
    events = [{"step": i, "kind": "eval", "loads": one} for i, one in enumerate(loads)]
    steps, found = metrics.recorded_loads(events, 2)
    assert steps == [0]
    assert found.tolist() == [loads[0]]
    assert metrics.recorded_loads(events, 3)[0] == []


@pytest.mark.parametrize("act", ["removed", "replaced"])
def test_a_file_that_is_gone_is_noticed_before_the_next_checkpoint(act, tmp_path):
    path = tmp_path / "run" / "metrics.jsonl"
    writer = MetricWriter(path)
    write(writer, [1])
    writer.sync()
    path.unlink()
    if act == "replaced":
        path.write_bytes(LINE % 1)
    with pytest.raises(UserError, match=r"metrics.jsonl (has been replaced|cannot be written)"):
        writer.sync()
    writer.close()
