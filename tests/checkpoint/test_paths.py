"""A folder may have any name: what is saved there is read there, and never another's."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.experimental import multihost_utils

from dsjax import weights as opening
from dsjax.checkpoint import multihost, plain
from dsjax.checkpoint.store import Store
from dsjax.config.model import MLAConfig, ModelConfig
from dsjax.errors import UserError
from dsjax.released import convert, hf
from tests.released.test_hf import draw, same

NAMES = ["lr[1]", "[", "[!a]", "a*", "a?b", "?x=1", "a%20b", "%", "#1", "{a,b}", "~", "a b", " ",
         "a:b", "file:", "gs:", "a\nb", "a\\b", "\u00e9\u65e5", "a\udcffb", "-a", "a'b", 'a"b',
         "$HOME", "a|b", "a;b&c", "<a>", "\x1b[2J", "\u202e", "x" * 255, "...",
         "deep/" * 90 + "[x]"]
DECOYS = {"a%20b": "a b", "a#b": "a", "a?b": "a", "a%5Bb": "a[b", "[ab]": "a", "a*": "ab"}


def weights(folder):
    """Restore from a store in a folder."""
    kept = Store(folder / "checkpoints", keep=2)
    _, got, extra = kept.restore({"w": np.zeros(3)})
    kept.close()
    return got["w"], extra


def save(folder, number):
    kept = Store(folder / "checkpoints", keep=2)
    kept.save(1, {"w": np.full(3, 0.5 + number)}, {"number": number})
    kept.close()


@pytest.mark.parametrize("is_relative", [False, True])
def test_a_folder_of_any_name_is_read_back(is_relative, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for number, name in enumerate(NAMES[:: 1 + is_relative]):
        folder = tmp_path / name if not is_relative else Path(name)
        save(folder, number)
        found, extra = weights(tmp_path / name)
        assert extra["number"] == number, name
        np.testing.assert_array_equal(found, 0.5 + number)


def test_a_name_that_reads_as_another_does_not_read_the_other(tmp_path):
    for number, (name, other) in enumerate(DECOYS.items()):
        save(tmp_path / str(number) / other, 100)
        save(tmp_path / str(number) / name, number)
        assert weights(tmp_path / str(number) / name)[0][0] == 0.5 + number, name
        assert weights(tmp_path / str(number) / other)[0][0] == 100.5, name


CFG = ModelConfig(32, 16, 1, 1, 24, MLAConfig(1, 8, 8, 4, 8))


@pytest.mark.parametrize("name", ["lr[1] 50%#?x", "a\udcff\n\\", "y" * 250])
def test_released_checkpoints_are_converted_in_folders_of_any_name(name, tmp_path):
    quiet, p = {"say": lambda sentence: None}, draw(CFG)
    for at in ("a", "run", "b"):
        (tmp_path / at).mkdir()
    hf.save(tmp_path / "a" / name, CFG, p)
    convert.to_run(tmp_path / "a" / name, tmp_path / "run" / name, **quiet)
    same(opening.load(tmp_path / "run" / name), p)
    convert.to_released(tmp_path / "run" / name, tmp_path / "b" / name, **quiet)
    same(hf.load(tmp_path / "b" / name, **quiet)[1], p)
    assert not list(tmp_path.glob("*/.*"))


def test_a_link_is_followed(tmp_path):
    (tmp_path / "big [disk]").mkdir()
    (tmp_path / "run").symlink_to("big [disk]")
    save(tmp_path / "run", 1)
    assert weights(tmp_path / "big [disk]")[0][0] == 1.5


def test_links_go_with_the_process(tmp_path):
    program = "import sys; from pathlib import Path; from dsjax.checkpoint import plain\n" \
        "at = plain.plain(Path(sys.argv[1])); (at / 'file').touch(); print(at)"
    (tmp_path / "[x]").mkdir()
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path / "[x]")], text=True,
                          capture_output=True, check=True)
    at = Path(done.stdout.strip())
    assert plain.is_plain(at)
    assert not at.parent.exists()
    assert (tmp_path / "[x]" / "file").is_file()


def test_a_link_that_was_cleaned_away_is_made_again(tmp_path):
    at = plain.plain(tmp_path / "[x]")
    os.unlink(at)
    assert os.readlink(plain.plain(tmp_path / "[x]")) == str(tmp_path / "[x]")


def test_all_processes_go_by_one_link(tmp_path, monkeypatch):
    """orbax wants the same path of all that save together, wherever their temporary folders are."""
    said = []
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(multihost_utils, "broadcast_one_to_all",
                        lambda a: said.append(a) or said[0])
    first = multihost.plain(tmp_path / "[x]")
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    os.unlink(first)  # as on another host
    assert multihost.plain(tmp_path / "[x]") == first
    assert os.readlink(first) == str(tmp_path / "[x]")
    assert multihost.plain(tmp_path) == tmp_path
    said[0] = np.zeros(512, np.uint8)
    with pytest.raises(UserError, match="first process cannot link"):
        multihost.plain(tmp_path / "[x]")


def test_no_place_for_links_is_a_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(plain, "_folders", [])
    monkeypatch.setattr(plain, "_links", {})
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(UserError, match="TMPDIR"):
        plain.plain(tmp_path / "[x]")
