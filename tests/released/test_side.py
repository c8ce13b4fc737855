"""Files beside weights are copied from the checkpoint alone, and its tokenizer belongs to them."""

import json
import os

import pytest

from dsjax import disk
from dsjax.checkpoint import files, manifest, store
from dsjax.cli import main
from dsjax.config.model import MLAConfig, ModelConfig
from dsjax.data.tokenizers import tokenizer
from dsjax.errors import UserError
from dsjax.released import hf, side
from tests.released.test_hf import draw

CFG = ModelConfig(300, 16, 1, 1, 24, MLAConfig(1, 8, 8, 4, 8))
WORDS = tokenizer.train_bpe(["to be or not to be " * 9], 300)
OTHER = tokenizer.train_bpe(["that is the question " * 9], 300)


@pytest.fixture
def released(tmp_path):
    """A released checkpoint with a tokenizer."""
    folder = tmp_path / "released"
    hf.save(folder, CFG, draw(CFG))
    WORDS.save(folder / "tokenizer.json")
    return folder


def convert(*words):
    return main.main(["convert", *map(str, words)])


@pytest.mark.parametrize("name", ["chat_template.jinja", "tokenizer.json", "config.json"])
@pytest.mark.parametrize("way", ["absolute", "relative", "by_a_folder", "gone", "itself"])
def test_a_link_that_leaves_a_checkpoint_is_refused_by_name(released, tmp_path, name, way, capsys):
    secret = tmp_path / "secret"
    secret.write_bytes((released / "config.json").read_bytes() + b"\n")
    path = released / name
    path.unlink(missing_ok=True)
    if way == "by_a_folder":
        (released / "inner").symlink_to("..")
    path.symlink_to({"absolute": secret, "relative": "../secret", "by_a_folder": "inner/secret",
                     "gone": "nothing", "itself": name}[way])
    before = sorted(os.listdir(tmp_path))
    assert convert("hf-to-dsjax", released, tmp_path / "run") == 2
    said = capsys.readouterr().err
    assert name in said
    assert name == "config.json" or way in ("gone", "itself") or "outside" in said
    assert sorted(os.listdir(tmp_path)) == before


def test_the_snapshot_of_a_cache_is_links_into_its_blobs(released, tmp_path):
    repository = tmp_path / "models--deepseek-ai--tiny"
    snapshot, blobs = repository / "snapshots" / "abc", repository / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for number, path in enumerate(sorted(released.iterdir())):
        os.rename(path, blobs / str(number))
        (snapshot / path.name).symlink_to(f"../../blobs/{number}")
    assert convert("hf-to-dsjax", snapshot, tmp_path / "run") == 0
    assert not any(p.is_symlink() for p in (tmp_path / "run").rglob("*"))
    assert tokenizer.load(tmp_path / "run" / "tokenizer.json").fingerprint == WORDS.fingerprint
    (tmp_path / "blob").touch()
    (snapshot / "x.json").symlink_to("../../../blob")
    with pytest.raises(UserError, match=r"x\.json is a link to .*blob, outside"):
        side.extra_files(snapshot)


def test_weights_may_lie_elsewhere(released, tmp_path):
    weights = next(released.glob("*.safetensors"))
    os.rename(weights, tmp_path / "on a big disk")
    weights.symlink_to(tmp_path / "on a big disk")
    assert convert("hf-to-dsjax", released, tmp_path / "run") == 0


def test_what_is_no_file_of_a_checkpoint_is_left(released, tmp_path):
    os.mkfifo(released / "pipe.json")
    (released / "folder.json").mkdir()
    (released / "to_folder.json").symlink_to(tmp_path)
    (released / ".hidden.json").symlink_to("/etc/passwd")
    (released / "._tokenizer.json").write_bytes(b"\0\5\26\7")
    (released / "._model.safetensors").write_bytes(b"\0\5\26\7")
    (released / "linked.json").symlink_to("tokenizer.json")
    assert [p.name for p in side.extra_files(released)] == ["linked.json", "tokenizer.json"]


def test_large_files_beside_weights_are_refused(released, monkeypatch):
    with (released / "a.txt").open("wb") as file:
        file.truncate(disk.LIMIT + 1)  # takes no room
    with pytest.raises(UserError, match=r"a\.txt has 268\.4 MB, above the 268\.4 MB"):
        side.extra_files(released)
    (released / "a.txt").unlink()
    for name in "abcdef":
        with (released / f"{name}.txt").open("wb") as file:
            file.truncate(disk.LIMIT - 1)
    with pytest.raises(UserError, match="beside its weights, above the"):
        side.extra_files(released)


def test_a_converted_run_keeps_whose_tokenizer_its_weights_have(released, tmp_path, capsys):
    assert convert("hf-to-dsjax", released, tmp_path / "run") == 0
    assert store.tokenizer_of(tmp_path / "run") == WORDS.fingerprint
    OTHER.save(tmp_path / "run" / "tokenizer.json")
    capsys.readouterr()
    assert convert("dsjax-to-hf", tmp_path / "run", tmp_path / "out") == 2
    said = capsys.readouterr().err
    assert WORDS.fingerprint in said
    assert OTHER.fingerprint in said
    assert not (tmp_path / "out").exists()
    (tmp_path / "run" / "tokenizer.json").write_text("[]")
    assert convert("dsjax-to-hf", tmp_path / "run", tmp_path / "out") == 2
    (tmp_path / "run" / "tokenizer.json").unlink()
    capsys.readouterr()
    assert convert("dsjax-to-hf", tmp_path / "run", tmp_path / "out") == 0
    assert "has no tokenizer.json" in capsys.readouterr().err


def test_a_tokenizer_that_cannot_be_used_is_said_and_copied(released, tmp_path, capsys):
    (released / "tokenizer.json").write_text('{"model": {"type": "Unigram"}}')
    assert convert("hf-to-dsjax", released, tmp_path / "run") == 0
    said = capsys.readouterr().err
    assert "cannot use the checkpoint's tokenizer" in said
    assert "`dsjax generate` and `dsjax train` will refuse" in said
    assert store.tokenizer_of(tmp_path / "run") is None
    assert convert("dsjax-to-hf", tmp_path / "run", tmp_path / "out") == 0
    kept = json.loads((tmp_path / "out" / "tokenizer.json").read_text())
    assert kept["model"]["type"] == "Unigram"


@pytest.mark.parametrize("text", ["{", "[]", '{"model_type": "llama"}'])
def test_a_broken_config_is_not_said_to_be_the_tokenizers(released, tmp_path, capsys, text):
    (released / "config.json").write_text(text)
    assert convert("hf-to-dsjax", released, tmp_path / "run") == 2
    said = capsys.readouterr().err
    assert "config.json" in said
    assert "tokenizer" not in said
    assert said.count("\n") == 1


def test_weights_older_than_the_key_take_any_tokenizer(released, tmp_path):
    assert convert("hf-to-dsjax", released, tmp_path / "run") == 0
    where = tmp_path / "run" / "checkpoints" / files.name(0)
    found = manifest.read(where)
    extra = {k: v for k, v in found.extra.items() if k != store.TOKENIZER}
    manifest.write(where, manifest.Manifest(0, found.leaves, extra, found.files))
    OTHER.save(tmp_path / "run" / "tokenizer.json")
    assert convert("dsjax-to-hf", tmp_path / "run", tmp_path / "out") == 0
    assert tokenizer.load(tmp_path / "out" / "tokenizer.json").fingerprint == OTHER.fingerprint
