"""`dsjax loads` states what was measured and what EPLB's placement makes of it."""

import json
from pathlib import Path

import numpy as np
import pytest

from dsjax.cli.main import main
from dsjax.cli.process import experts
from dsjax.config.stored import run_to_json
from dsjax.errors import UserError
from dsjax.infer import Room
from dsjax.report.metrics import MetricWriter
from tests.train.small_run import MODEL, small_run

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "eplb_example.json").read_text())
assert MODEL.moe is not None
LOADS = np.arange(1.0, 2 * MODEL.moe.experts + 1).reshape(2, -1)


@pytest.fixture
def example(tmp_path):
    path = tmp_path / "loads.json"
    path.write_text(json.dumps({"loads": GOLDEN["weight"]}))
    return path


@pytest.fixture
def folder(tmp_path):
    """A run that evaluated twice."""
    run_to_json(small_run(tmp_path, tmp_path / "words.txt"), tmp_path / "config.json")
    writer = MetricWriter(tmp_path / "metrics.jsonl")
    writer.write(12, "eval", {"loads": np.ones_like(LOADS)})
    writer.write(24, "eval", {"loads": LOADS})
    writer.close()
    return tmp_path


def test_a_cache_of_experts_takes_the_main_models_loads(folder, tmp_path):
    flags = experts.ExpertFlags(experts_cache="2GB")
    assert experts.room(flags, str(folder)) == Room(2 * 10**9, (tuple(LOADS[0].tolist()),))
    assert experts.room(flags, str(tmp_path / "elsewhere")) == Room(2 * 10**9)
    assert experts.room(experts.ExpertFlags(), str(folder)) is None
    path = tmp_path / "other.json"
    path.write_text(json.dumps([[1, 2], [3, 4]]))
    found = experts.room(experts.ExpertFlags("1 MiB", path, False), str(folder))
    assert found == Room(2**20, ((1.0, 2.0), (3.0, 4.0)), is_ahead=False)


@pytest.mark.parametrize(("text", "size"), [
    ("2GB", 2 * 10**9), ("1.5gib", 3 * 2**29), ("500 MB", 5 * 10**8), ("7B", 7)])
def test_sizes_are_read_as_people_write_them(text, size):
    assert experts.nbytes(text) == size


@pytest.mark.parametrize("text", ["2", "GB", "-1GB", "2 G", "1e9B", "", "2GB2"])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(UserError, match="a number and a unit"):
        experts.nbytes(text)


def shown(capsys, *argv):
    assert main(["loads", *map(str, argv), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_the_published_example_is_placed_and_drawn(example, capsys):
    sizes = {"replicas": "num_replicas", "groups": "num_groups", "nodes": "num_nodes",
             "devices": "num_gpus"}
    words = [w for name, key in sizes.items() for w in (f"--{name}", GOLDEN[key])]
    found = shown(capsys, example, *words)
    assert found["placement"] == GOLDEN["phy2log_published"]
    assert Path(found["picture"]).read_bytes().startswith(b"\x89PNG")


def test_a_layer_is_stated_relative_to_its_mean(folder, capsys):
    found = shown(capsys, folder, "--devices", 3)
    assert [row["layer"] for row in found["layers"]] == ["layer 1", "MTP 1"]
    first = found["layers"][0]  # loads 1 to 6, two a device: 3, 7 and 11 of 21
    assert first["expert_before"] == pytest.approx(6 / 3.5, abs=1e-4)
    assert first["device_before"] == pytest.approx(11 / 7, abs=1e-4)
    counts = np.bincount(found["placement"][0])
    share = np.array(LOADS[0] / counts)[found["placement"][0]]
    assert first["device_after"] == pytest.approx(share.reshape(3, 3).sum(1).max() / 7, abs=1e-4)
    assert first["device_after"] < first["device_before"]
    assert first["copies"] == counts.max()
    assert found["picture"] == str(folder / "eplb.png")


def test_the_table_says_it_in_words(folder, capsys):
    assert main(["loads", str(folder), "--devices", "3"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "busiest device 1.57x its layer's mean" in said
    assert "MTP 1" in said


@pytest.mark.parametrize(("words", "answer"), [
    (["--devices", "4", "--replicas", "9"], "--replicas 9 is not divisible by --devices 4"),
    (["--replicas", "many"], "--replicas takes None or INT, not 'many'"),
    (["--sideways"], "no flag --sideways"),
    (["--replicas", "5"], "cannot hold 6 experts"),
])
def test_wrong_numbers_are_answered_in_a_sentence(folder, capsys, words, answer):
    assert main(["loads", str(folder), *words]) == 2
    assert answer in capsys.readouterr().err


def test_what_holds_no_loads_is_refused(tmp_path, capsys):
    assert main(["loads", str(tmp_path)]) == 2
    assert "holds no loads" in capsys.readouterr().err
    (tmp_path / "odd.json").write_text('{"loads": [[1, 2], [3]]}')
    assert main(["loads", str(tmp_path / "odd.json")]) == 2
    assert "does not hold loads" in capsys.readouterr().err
