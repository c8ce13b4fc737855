"""A run goes on with its own folder and no other's, also after the program has grown."""

import dataclasses
import io
import json

import pytest
from rich.console import Console

from dsjax.checkpoint import files
from dsjax.config.stored import run_to_json
from dsjax.data.tokenizers import tokenizer
from dsjax.errors import UserError
from dsjax.train import loop
from dsjax.train.folder import resume
from tests.train.small_run import small_run, write_text


@pytest.fixture
def run(tmp_path):
    """A run whose folder holds its config and a checkpoint."""
    run = small_run(tmp_path, tmp_path / "words.txt")
    (tmp_path / "checkpoints" / files.name(6)).mkdir(parents=True)
    run_to_json(run, tmp_path / "config.json")
    return run


def changed(run, **parts):
    return dataclasses.replace(run, **parts)


def test_a_field_added_since_does_not_change_what_a_run_is(run, tmp_path):
    path = tmp_path / "config.json"
    stored = json.loads(path.read_text())
    del stored["model"]["attention"]["latent_norm_eps"]
    del stored["optimizer"]["eps"]
    path.write_text(json.dumps(stored))
    resume.refuse_another(run, tmp_path)
    other = changed(run, optimizer=dataclasses.replace(run.optimizer, eps=1e-6))
    with pytest.raises(UserError, match=r"made with optimizer.eps=1e-08, not 1e-06; give the"):
        resume.refuse_another(other, tmp_path)


def test_another_identity_is_refused_by_the_field_that_differs(run, tmp_path):
    others = {
        "model.moe.scale=1.0, not 2.5": changed(
            run, model=dataclasses.replace(
                run.model, moe=dataclasses.replace(run.model.moe, scale=2.5))),
        "data.fim_rate=0.0, not 0.1": changed(
            run, data=dataclasses.replace(run.data, fim_rate=0.1)),
        "loss.bias_speed=0.01, not 0.001": changed(
            run, loss=dataclasses.replace(run.loss, bias_speed=0.001)),
        "seed=0, not 1": changed(run, seed=1),
    }
    for words, other in others.items():
        with pytest.raises(UserError) as raised:
            resume.refuse_another(other, tmp_path)
        assert words in str(raised.value)
        assert "--output.folder" in str(raised.value)


def test_length_rate_place_and_start_may_change(run, tmp_path):
    resume.refuse_another(
        changed(run, train=dataclasses.replace(run.train, steps=7, microbatches=2),
                learning_rate=dataclasses.replace(run.learning_rate, peak=1e-4),
                init_from="elsewhere",
                output=dataclasses.replace(run.output, keep=9)),
        tmp_path,
    )


def test_nothing_is_written_into_another_runs_folder(run, tmp_path):
    words = tmp_path / "words.txt"
    write_text(words)
    tokenizer.train_bpe([words.read_text()], 270).save(tmp_path / "other.json")
    (tmp_path / "tokenizer.json").write_text("its own")
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
    data = dataclasses.replace(run.data, tokenizer=str(tmp_path / "other.json"))
    with pytest.raises(UserError, match=r"data.tokenizer=None, not"):
        loop.train(changed(run, data=data), Console(file=io.StringIO()))
    with pytest.raises(UserError, match=r"already holds a run; name another --output.folder"):
        loop.train(changed(run, output=dataclasses.replace(run.output, resume=False)),
                   Console(file=io.StringIO()))
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")} == before


def test_a_folder_without_checkpoints_is_anyones(run, tmp_path):
    (tmp_path / "checkpoints" / files.name(6)).rmdir()
    resume.refuse_another(changed(run, seed=1), tmp_path)


def test_checkpoints_without_their_config_are_refused_in_a_sentence(run, tmp_path):
    (tmp_path / "config.json").unlink()
    with pytest.raises(UserError, match=r"no config.json, which says what they are of; put it"):
        resume.refuse_another(run, tmp_path)


def test_a_file_is_no_folder_and_is_refused_before_any_work(run, tmp_path):
    file = tmp_path / "words.txt"
    file.write_text("text")
    for out in (file, file / "inside"):
        output = dataclasses.replace(run.output, folder=str(out))
        with pytest.raises(UserError, match=r"words.txt is a file; name another --output.folder"):
            resume.folder(changed(run, output=output))
    output = dataclasses.replace(run.output, folder="x" * 300)
    with pytest.raises(UserError, match=r"cannot be a folder .*--output.folder"):
        resume.folder(changed(run, output=output))
    output = dataclasses.replace(run.output, folder=str(tmp_path / "new" / "deep"))
    assert resume.folder(changed(run, output=output)) == tmp_path / "new" / "deep"
