"""Converting on disk gives what loading and saving give."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest

from configs import tiny
from dsjax import disk, weights
from dsjax.checkpoint import store
from dsjax.checkpoint.arrays import Arrays
from dsjax.cli import convert, main
from dsjax.config.loss import LossConfig
from dsjax.config.stored import run_from_json, run_to_json
from dsjax.data.tokenizers import tokenizer
from dsjax.errors import UserError
from dsjax.model import transformer
from dsjax.released import convert as conversion
from dsjax.released import hf
from tests.released.test_hf import CFG, LITE, PARAMS, draw, same, same_files

QUIET = {"say": lambda sentence: None}


def run_command(*words):
    return main.main(["convert", *map(str, words)])


@pytest.mark.parametrize("form", ["float32", "fp8"])
def test_there_and_back_gives_the_same_files(form, tmp_path, capsys):
    hf.save(tmp_path / "a", CFG, PARAMS, fp8=form == "fp8")
    assert run_command("hf-to-dsjax", tmp_path / "a", tmp_path / "run") == 0
    flags = ["--fp8"] if form == "fp8" else []
    assert run_command("dsjax-to-hf", tmp_path / "run", tmp_path / "b", *flags) == 0
    same_files(tmp_path / "a", tmp_path / "b")
    assert "aux_loss_alpha is not in the config" in capsys.readouterr().err


def test_a_converted_run_is_read_as_a_trained_one(source, tmp_path):
    conversion.to_run(source, tmp_path / "run", **QUIET)
    config = run_from_json(tmp_path / "run" / "config.json")
    assert config.model == CFG
    assert config.loss.balance == 1e-4
    same(weights.load(tmp_path / "run"), PARAMS)
    assert (tmp_path / "run" / "released" / "generation_config.json").is_file()


def test_another_dtype_is_made_on_the_way(source, tmp_path):
    conversion.to_run(source, tmp_path / "run", "bfloat16", mtp=False, **QUIET)
    cfg = run_from_json(tmp_path / "run" / "config.json").model
    assert cfg.mtp_depth == 0
    got = weights.load(tmp_path / "run")
    same(got, hf.load(source, "bfloat16", mtp=False)[1])


def test_a_trained_run_becomes_a_checkpoint_with_its_tokenizer(tmp_path):
    """What the Store writes: compressed, one chunk an array, under `train.params`."""
    words = tokenizer.train_bpe(["to be or not to be " * 9], 300)
    words.save(tmp_path / "tokenizer.json")
    cfg = dataclasses.replace(CFG, vocab=300)
    p = jax.tree.map(np.asarray, draw(cfg))
    checkpointed(tmp_path, p, model=cfg)
    assert run_command("dsjax-to-hf", tmp_path, tmp_path / "out") == 0
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
    assert run_command("hf-to-dsjax", tmp_path / "source", tmp_path / "run") == 0
    got = weights.load(tmp_path / "run", "dequantized")
    assert got.moe.ffn.experts.w_down.dtype == got.dense.attn.w_uq.dtype == jax.numpy.bfloat16
    same(jax.tree.map(lambda a: a.astype(jax.numpy.bfloat16), got),
         hf.load(tmp_path / "source", "bfloat16", **QUIET)[1])
    capsys.readouterr()
    flags = ["--prompt", "to be", "--max-new-tokens", "9", "--temperature", "0", "--json"]
    assert main.main(["generate", str(tmp_path / "run"), *flags]) == 0
    assert 1 <= json.loads(capsys.readouterr().out)["new_tokens"] <= 9


def checkpointed(run, params, **changes):
    """A run folder with one checkpoint, as training leaves it."""
    kept = store.Store(run / "checkpoints", 1)
    kept.save(3, {"train": {"params": jax.tree.map(jax.numpy.asarray, params)}}, {})
    kept.close()
    run_to_json(dataclasses.replace(tiny.config(), **changes), run / "config.json")
    return run


@pytest.fixture
def lite(tmp_path):
    """A run converted from a released checkpoint with all that may lie beside weights."""
    cfg = dataclasses.replace(LITE, vocab=300)
    source = tmp_path / "released"
    hf.save(source, cfg, draw(cfg))
    more = {"eos_token_id": 7, "max_position_embeddings": 163840, "aux_loss_alpha": 0.001}
    config = json.loads((source / "config.json").read_text())
    disk.write_json(source / "config.json", config | more)
    tokenizer.train_bpe(["to be or not to be " * 9], 300).save(source / "tokenizer.json")
    for name in ("generation_config.json", "tokenizer_config.json"):
        (source / name).write_text('{"chat_template": "x"}')
    conversion.to_run(source, tmp_path / "lite", **QUIET)
    return tmp_path / "lite"


def exported(run, out, *flags):
    assert run_command("dsjax-to-hf", run, out, *flags) == 0
    return json.loads((out / "config.json").read_text()), {p.name for p in out.iterdir()}


def test_a_fine_tuned_run_keeps_what_its_source_had_beside_weights(lite, tmp_path):
    cfg = run_from_json(lite / "config.json").model
    (tmp_path / "a").mkdir()
    shutil.copyfile(lite / "tokenizer.json", tmp_path / "a" / "tokenizer.json")
    loss = LossConfig(balance=0.0, expert_balance=0.5)
    tuned = checkpointed(tmp_path / "a", draw(cfg, 1), model=cfg, loss=loss, init_from=str(lite))
    again = checkpointed(tmp_path / "b", draw(cfg, 2), model=cfg, init_from=str(tuned))
    for run in (tuned, again):
        config, files = exported(run, tmp_path / f"out-{run.name}")
        assert (config["eos_token_id"], config["max_position_embeddings"]) == (7, 163840)
        assert {"generation_config.json", "tokenizer_config.json", "tokenizer.json"} <= files
        assert config["aux_loss_alpha"] == (0.5 if run is tuned else 0.0)


def test_another_tokenizer_does_not_get_the_token_ids_of_the_source(lite, tmp_path, capsys):
    cfg = run_from_json(lite / "config.json").model
    words = tokenizer.train_bpe(["the rest is silence " * 9], 300)
    (tmp_path / "a").mkdir()
    words.save(tmp_path / "a" / "tokenizer.json")
    run = checkpointed(tmp_path / "a", draw(cfg), model=cfg, init_from=str(lite))
    config, files = exported(run, tmp_path / "out")
    assert "is not that of" in capsys.readouterr().err
    assert (config["eos_token_id"], config["max_position_embeddings"]) == (words.end_id, 163840)
    assert "generation_config.json" not in files
    assert (tmp_path / "out" / "tokenizer.json").read_text() == words.source


def test_a_source_that_is_gone_is_said_and_can_be_named(lite, tmp_path, capsys):
    cfg = run_from_json(lite / "config.json").model
    run = checkpointed(tmp_path / "a", draw(cfg), model=cfg, init_from=str(tmp_path / "gone"))
    config, _ = exported(run, tmp_path / "out")
    assert "eos_token_id" not in config
    assert "is not there: what its checkpoint had besides weights" in capsys.readouterr().err
    config, files = exported(run, tmp_path / "out2", "--like", tmp_path / "released")
    assert config["eos_token_id"] == 7
    assert "generation_config.json" in files


def test_a_capacity_of_training_is_left_out_of_what_is_released(tmp_path, capsys):
    moe = dataclasses.replace(CFG.moe, capacity_factor=1.5)
    cfg = dataclasses.replace(CFG, moe=moe)
    with pytest.raises(UserError, match=r"capacity_factor=1.5 has no released form"):
        hf.save(tmp_path / "x", cfg, PARAMS)
    exported(checkpointed(tmp_path / "a", PARAMS, model=cfg), tmp_path / "out")
    assert "capacity_factor is not written" in capsys.readouterr().err
    assert hf.load(tmp_path / "out", **QUIET)[0] == CFG


def test_the_wrong_direction_is_said(source, tmp_path, capsys):
    conversion.to_run(source, tmp_path / "run", **QUIET)
    assert run_command("hf-to-dsjax", tmp_path / "run", tmp_path / "x") == 2
    assert "convert it with `dsjax convert dsjax-to-hf`" in capsys.readouterr().err
    assert run_command("dsjax-to-hf", source, tmp_path / "x") == 2
    assert "convert it with `dsjax convert hf-to-dsjax`" in capsys.readouterr().err
    assert run_command("dsjax-to-hf", tmp_path / "run", tmp_path / "x", "--ue8m0") == 2
    assert "ask for fp8 too" in capsys.readouterr().err
    assert not list(tmp_path.glob("*x*"))


def test_a_matrix_of_a_trained_run_is_read_alone(tmp_path, monkeypatch):
    """So that memory is bounded by a tensor, not by all layers and experts of one."""
    monkeypatch.setattr(store, "CHUNK", 1)
    kept = store.Store(tmp_path / "checkpoints", 1, transformer.specs(CFG))
    kept.save(3, {"train": {"params": PARAMS, "mu": PARAMS}}, {})
    kept.close()
    stored = Arrays(tmp_path / "checkpoints" / "step-00000003" / "arrays")
    wanted = {"moe.ffn.experts.w_down": (1, 1, 130, 140), "moe.attn.w_o": (1, 3, 50, 140),
              "mtp.block.ffn.experts.w_gate_up": (1, 1, 140, 2, 130), "head": (140, 37)}
    for name, shape in wanted.items():
        for tree in ("params", "mu"):
            array = stored.opened(f"train.{tree}.{name}")
            assert array.chunk_layout.read_chunk.shape == shape
    run_to_json(dataclasses.replace(tiny.config(), model=CFG), tmp_path / "config.json")
    exported(tmp_path, tmp_path / "out")
    same(hf.load(tmp_path / "out", **QUIET)[1], PARAMS)


def test_bad_input_is_a_sentence_and_status_2(source, tmp_path, capsys):
    assert run_command("hf-to-dsjax", tmp_path / "none", tmp_path / "run") == 2
    assert "config.json is missing" in capsys.readouterr().err
    (source / "model-00001-of-00001.safetensors").unlink()
    assert run_command("hf-to-dsjax", source, tmp_path / "run") == 2
    said = capsys.readouterr().err
    assert "is missing, which model.safetensors.index.json lists" in said
    assert "Traceback" not in said
    assert run_command("dsjax-to-hf", tmp_path, tmp_path / "out") == 2
    assert not (tmp_path / "run").exists()
    assert not (tmp_path / "out").exists()


def test_a_damaged_checkpoint_is_not_exported(source, tmp_path, capsys):
    conversion.to_run(source, tmp_path / "run", **QUIET)
    chunk = next((tmp_path / "run").rglob("params.embed/c/0/0"))
    data = bytearray(chunk.read_bytes())
    data[7] ^= 1
    chunk.write_bytes(data)
    assert run_command("dsjax-to-hf", tmp_path / "run", tmp_path / "out") == 2
    assert "is not what was written" in capsys.readouterr().err


def test_an_export_goes_back_to_the_checkpoint_that_is_whole(lite, tmp_path, capsys):
    """As generate and train do."""
    kept = lite / "checkpoints"
    shutil.copytree(kept / "step-00000000", kept / "step-00000009")
    (kept / "step-00000009" / "manifest.json").write_text("{}")
    capsys.readouterr()
    exported(lite, tmp_path / "out")
    said = capsys.readouterr().err
    assert "checkpoint 9 is damaged" in said
    assert "is checkpoint 0 of" in said
    assert (kept / "step-00000009").is_dir()


def test_without_a_terminal_progress_is_plain_lines(capsys, monkeypatch):
    show = convert._lines("x")
    monkeypatch.setattr(convert, "EVERY", 0.0)
    show(0, 8 * 10**9)
    show(2 * 10**9, 8 * 10**9)
    assert "x: 2.00 of 8.00 GB, " in capsys.readouterr().err
