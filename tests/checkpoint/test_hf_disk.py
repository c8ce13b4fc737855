"""Converting on disk gives what loading and saving give, and goes on where it stopped."""

import dataclasses
import filecmp
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from configs import tiny
from dsjax.checkpoint import hf, hf_disk, hf_files, hf_pieces, store
from dsjax.cli import convert, main
from dsjax.config.stored import run_from_json, run_to_json
from dsjax.data import tokenizer
from tests.checkpoint.test_hf import CFG, LITE, PARAMS, draw, same, same_files

QUIET = {"say": lambda sentence: None}


def run(*words):
    return main.main(["convert", *map(str, words)])


@pytest.fixture
def source(tmp_path):
    hf.save(tmp_path / "source", CFG, PARAMS)
    (tmp_path / "source" / "generation_config.json").write_text("{}")
    return tmp_path / "source"


@pytest.mark.parametrize("form", ["float32", "fp8"])
def test_there_and_back_gives_the_same_files(form, tmp_path, capsys):
    hf.save(tmp_path / "a", CFG, PARAMS, fp8=form == "fp8")
    assert run("hf-to-dsjax", tmp_path / "a", tmp_path / "run") == 0
    flags = ["--fp8"] if form == "fp8" else []
    assert run("dsjax-to-hf", tmp_path / "run", tmp_path / "b", *flags) == 0
    same_files(tmp_path / "a", tmp_path / "b")
    assert "aux_loss_alpha is not in the config" in capsys.readouterr().err


def test_a_converted_run_is_read_as_a_trained_one(source, tmp_path):
    hf_disk.to_run(source, tmp_path / "run", **QUIET)
    config = run_from_json(tmp_path / "run" / "config.json")
    assert config.model == CFG
    assert config.loss.balance == 1e-4
    same(store.load_params(tmp_path / "run", CFG), PARAMS)
    assert (tmp_path / "run" / "released" / "generation_config.json").is_file()


def test_another_dtype_is_made_on_the_way(source, tmp_path):
    hf_disk.to_run(source, tmp_path / "run", "bfloat16", mtp=False, **QUIET)
    cfg = run_from_json(tmp_path / "run" / "config.json").model
    assert cfg.mtp_depth == 0
    got = store.load_params(tmp_path / "run", cfg)
    same(got, hf.load(source, "bfloat16", mtp=False)[1])


def test_a_trained_run_becomes_a_checkpoint_with_its_tokenizer(tmp_path):
    """What the Store writes: compressed, one chunk an array, under `train.params`."""
    words = tokenizer.train_bpe(["to be or not to be " * 9], 300)
    words.save(tmp_path / "tokenizer.json")
    cfg = dataclasses.replace(CFG, vocab=300)
    p = jax.tree.map(np.asarray, draw(cfg))
    kept = store.Store(tmp_path / "checkpoints", 1)
    kept.save(3, {"train": {"params": jax.tree.map(jax.numpy.asarray, p)}}, {})
    kept.close()
    run_to_json(dataclasses.replace(tiny.config(), model=cfg), tmp_path / "config.json")
    assert run("dsjax-to-hf", tmp_path, tmp_path / "out") == 0
    read, q = hf.load(tmp_path / "out")
    assert read == cfg
    same(jax.tree.map(np.asarray, q), p)
    assert tokenizer.load(tmp_path / "out" / "tokenizer.json").vocab == words.vocab
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["eos_token_id"] == words.end_id
    settings = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
    assert settings["eos_token"] == "<|end_of_text|>"


def test_a_run_in_fp8_is_read_in_bfloat16_and_generates(tmp_path, capsys):
    words = tokenizer.train_bpe(["to be or not to be " * 9], 300)
    cfg = dataclasses.replace(LITE, vocab=300, layers=2)
    hf.save(tmp_path / "source", cfg, jax.tree.map(lambda a: 0.08 * a, draw(cfg)), fp8=True)
    words.save(tmp_path / "source" / "tokenizer.json")
    assert run("hf-to-dsjax", tmp_path / "source", tmp_path / "run") == 0
    got = store.load_params(tmp_path / "run", cfg)
    assert got.moe.ffn.experts.w_down.dtype == got.dense.attn.w_uq.dtype == jax.numpy.bfloat16
    same(jax.tree.map(lambda a: a.astype(jax.numpy.bfloat16), got),
         hf.load(tmp_path / "source", "bfloat16", **QUIET)[1])
    capsys.readouterr()
    flags = ["--prompt", "to be", "--max-new", "9", "--temperature", "0", "--json"]
    assert main.main(["generate", str(tmp_path / "run"), *flags]) == 0
    assert 1 <= json.loads(capsys.readouterr().out)["new_tokens"] <= 9


class Stop(Exception):  # noqa: N818
    pass


def after(count):
    """A progress function that stops the conversion after so many pieces."""
    calls = iter(range(10**9))

    def progress(done, total):
        if next(calls) == count:
            raise Stop

    return progress


def test_an_interrupted_conversion_goes_on_where_it_stopped(source, tmp_path, monkeypatch):
    hf_disk.to_run(source, tmp_path / "whole", **QUIET)
    with pytest.raises(Stop):
        hf_disk.to_run(source, tmp_path / "run", progress=after(60), **QUIET)
    assert not (tmp_path / "run").exists()
    read = []
    plain = hf_pieces.read
    monkeypatch.setattr(hf_pieces, "read", lambda s, *at: read.append(s) or plain(s, *at))
    hf_disk.to_run(source, tmp_path / "run", **QUIET)
    tensors = len(hf_files.open_checkpoint(source))
    assert 0 < len(read) < tensors - 50
    names = [p.relative_to(tmp_path / "run") for p in (tmp_path / "run").rglob("c/**/*")]
    for name in names:
        a, b = tmp_path / "run" / name, tmp_path / "whole" / name
        assert not a.is_file() or filecmp.cmp(a, b, shallow=False)
    same(store.load_params(tmp_path / "run", CFG), PARAMS)
    assert not list(tmp_path.glob(".*"))


def test_another_source_is_not_gone_on_with(source, tmp_path):
    with pytest.raises(Stop):
        hf_disk.to_run(source, tmp_path / "run", progress=after(60), **QUIET)
    shutil.rmtree(source)
    hf.save(source, CFG, jax.tree.map(lambda a: -a, PARAMS))
    hf_disk.to_run(source, tmp_path / "run", **QUIET)
    same(store.load_params(tmp_path / "run", CFG), jax.tree.map(lambda a: -a, PARAMS))


def test_an_interrupted_export_keeps_its_finished_files(source, tmp_path, monkeypatch):
    from dsjax.checkpoint import hf_write

    monkeypatch.setattr(hf_write, "SHARD", 1)
    hf_disk.to_run(source, tmp_path / "run", **QUIET)
    hf_disk.to_released(tmp_path / "run", tmp_path / "whole", **QUIET)
    with pytest.raises(Stop):
        hf_disk.to_released(tmp_path / "run", tmp_path / "out", progress=after(100), **QUIET)
    assert not (tmp_path / "out").exists()
    kept = {p.name: p.stat().st_mtime_ns for p in (tmp_path / ".out.partial").glob("model-*")}
    assert kept
    hf_disk.to_released(tmp_path / "run", tmp_path / "out", **QUIET)
    assert all((tmp_path / "out" / n).stat().st_mtime_ns == t for n, t in kept.items())
    same_files(tmp_path / "out", tmp_path / "whole")


@pytest.mark.slow
def test_a_killed_process_leaves_what_the_next_one_goes_on_from(source, tmp_path):
    command = [sys.executable, "-m", "dsjax", "convert", "hf-to-dsjax", str(source), "run"]
    slow = "import time; from dsjax.checkpoint import hf_pieces as h; f = h.read\n" \
        "h.read = lambda *a: (time.sleep(0.02), f(*a))[1]\n" \
        f"from dsjax.cli import main; main.main({command[3:]!r})"
    env = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": os.getcwd()}
    first = subprocess.Popen([sys.executable, "-c", slow], cwd=tmp_path, env=env)
    journal = tmp_path / ".run.partial/checkpoints/.saving-00000000/arrays/.done"
    until = time.monotonic() + 120
    while time.monotonic() < until and not (journal.exists() and journal.stat().st_size > 500):
        time.sleep(0.05)
    first.send_signal(signal.SIGKILL)
    first.wait()
    assert not (tmp_path / "run").exists()
    assert subprocess.run(command, cwd=tmp_path, env=env, check=False).returncode == 0
    same(store.load_params(tmp_path / "run", CFG), PARAMS)


def test_bad_input_is_a_sentence_and_status_2(source, tmp_path, capsys):
    assert run("hf-to-dsjax", tmp_path / "none", tmp_path / "run") == 2
    assert "config.json is missing" in capsys.readouterr().err
    (source / "model-00001-of-00001.safetensors").unlink()
    assert run("hf-to-dsjax", source, tmp_path / "run") == 2
    said = capsys.readouterr().err
    assert "is missing, which model.safetensors.index.json lists" in said
    assert "Traceback" not in said
    assert run("dsjax-to-hf", tmp_path, tmp_path / "out") == 2
    assert not (tmp_path / "run").exists()
    assert not (tmp_path / "out").exists()


def test_a_damaged_checkpoint_is_not_exported(source, tmp_path, capsys):
    hf_disk.to_run(source, tmp_path / "run", **QUIET)
    chunk = next((tmp_path / "run").rglob("params.embed/c/0/0"))
    data = bytearray(chunk.read_bytes())
    data[7] ^= 1
    chunk.write_bytes(data)
    assert run("dsjax-to-hf", tmp_path / "run", tmp_path / "out") == 2
    assert "is not what was written" in capsys.readouterr().err


def test_without_a_terminal_progress_is_plain_lines(capsys, monkeypatch):
    show = convert._lines("x")
    monkeypatch.setattr(convert, "EVERY", 0.0)
    show(0, 8 * 10**9)
    show(2 * 10**9, 8 * 10**9)
    assert "x: 2.00 of 8.00 GB, " in capsys.readouterr().err
