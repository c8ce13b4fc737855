"""`dsjax train` takes the folder of a run: it goes on there, or its parameters are a start."""

import dataclasses

import pytest

from dsjax.checkpoint.store import Store
from dsjax.cli import train as command
from dsjax.cli.main import main
from dsjax.cli.process import arguments
from dsjax.config.run import OutputConfig, RunConfig, TrainConfig
from dsjax.config.stored import run_from_json, run_to_json
from dsjax.data.tokenizers import tokenizer
from dsjax.model import transformer
from tests import agreement

TEXT = "To be, or not to be: that is the question.\nWhether 'tis nobler in the mind. " * 30


def read(argv):
    """The run of a command line."""
    return command.chosen(arguments.parse(command.Train, argv, "dsjax train"))


@pytest.fixture
def converted(tmp_path, monkeypatch):
    """A folder as dsjax convert makes it, and a text, in the present folder."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "runs" / "lite [1]"
    model = dataclasses.replace(agreement.TINY, vocab=300, layers=1, dense_layers=1, moe=None,
                                mtp_depth=0)
    store = Store(folder / "checkpoints", keep=1)
    store.save(0, {"params": agreement.draw(transformer.specs(model), 3)}, {})
    store.close()
    run = RunConfig("lite", model, train=TrainConfig(steps=1, batch_size=2, seq_len=16),
                    output=OutputConfig(eval_every=0, eval_batches=1, folder="somewhere else"))
    run_to_json(run, folder / "config.json")
    tokenizer.train_bpe([TEXT], 280).save(folder / "tokenizer.json")
    (tmp_path / "text.txt").write_text(TEXT)
    return folder.relative_to(tmp_path)


def test_converted_parameters_are_trained_in_another_folder_and_never_in_their_own(
        converted, tmp_path, capsys):
    before = sorted(tmp_path.rglob("*"))
    argv = ["train", str(converted), "--data.train", "text.txt"]
    assert main(argv) == 2
    said = capsys.readouterr().err
    assert "without an optimizer" in said
    assert "dsjax train 'runs/lite [1]' --data.train text.txt --output.folder" in said
    assert sorted(tmp_path.rglob("*")) == before
    out = tmp_path / "runs" / "lite [1]-trained"
    assert main([*argv, "--output.folder", str(out)]) == 0  # what was advised
    assert "starting from the parameters of runs/lite [1]" in capsys.readouterr().out
    made = run_from_json(out / "config.json")
    assert made.init_from == str(converted)
    assert made.output.folder == str(out)
    # The folder that was made is a run like any other: it goes on, or lends its settings.
    assert read([str(out)]) == made
    again = read([str(out), "--output.folder", "third", "--seed", "4"])
    assert (again.init_from, again.seed, again.output.folder) == (str(converted), 4, "third")


def test_the_settings_of_a_trained_run_are_used_anew_and_that_is_said(converted, tmp_path, capsys):
    run = run_from_json(converted / "config.json")
    folder = tmp_path / "trained"
    folder.mkdir()
    run_to_json(run, folder / "config.json")
    assert read([str(folder)]).output.folder == str(folder)
    made = read([str(folder), "--output.folder", "other"])
    assert made.init_from is None
    assert f"add --init-from {folder}" in capsys.readouterr().err
    given = read([str(folder), "--output.folder", "other", "--init-from", str(folder)])
    assert given.init_from == str(folder)
    assert not capsys.readouterr().err


def test_a_layout_of_more_devices_than_there_are_is_met_with_the_flag_that_makes_them(
        tmp_path, capsys):
    argv = ["train", "tiny", "--parallel.data", "16", "--train.batch-size", "16", "--output.folder",
            str(tmp_path / "run")]
    assert main(argv) == 2
    said = capsys.readouterr().err
    assert "needs 16 devices" in said
    assert "--devices 16" in said
    assert "--parallel.data" in said
    assert not (tmp_path / "run").exists()


def test_a_platform_that_is_not_here_is_a_sentence(monkeypatch, capsys):
    import jax

    def absent() -> None:
        raise RuntimeError("Unknown backend: 'cuda' requested, but no platforms are present")

    monkeypatch.setattr(jax, "devices", absent)
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    for argv in (["generate", "nowhere"], ["bench", "train"], ["train", "tiny"]):
        assert main(argv) == 2
        said = capsys.readouterr().err
        assert "JAX_PLATFORMS=cuda" in said
        assert "JAX_PLATFORMS=cpu" in said
