"""A run reads what its flags name: both parts of a folder, and the end token asked for."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest

from dsjax.cli.main import main
from dsjax.data.tokenizers import tokenizer
from dsjax.errors import UserError
from dsjax.train.corpus import prepare
from tests.data.descriptions import renamed, written
from tests.train.small_run import small_run, write_text


def quiet(sentence):
    """Say nothing."""


def read(run, **data):
    run = dataclasses.replace(run, data=dataclasses.replace(run.data, **data))
    return prepare(run, run_folder(run), quiet)


def run_folder(run):
    return Path(run.output.folder)


@pytest.fixture
def run(tmp_path):
    return small_run(tmp_path / "out", write_text(tmp_path / "plain.txt"))


def test_the_folder_that_holds_both_parts_names_both(run, tmp_path, capsys):
    assert main(["data", str(tmp_path / "plain.txt"), "--out", str(tmp_path / "d"),
                 "--vocab", "300"]) == 0
    by_parts = read(run, train=str(tmp_path / "d/train"), heldout=str(tmp_path / "d/heldout"))
    for heldout in (None, str(tmp_path / "d"), str(tmp_path / "d/heldout")):
        both = read(run, train=str(tmp_path / "d"), heldout=heldout)
        assert both.tokens == by_parts.tokens
    with pytest.raises(UserError, match=r"data\.heldout must be one too.*--data\.heldout .*d/held"):
        read(run, train=str(tmp_path / "d/train"), heldout=None)


def test_parts_that_were_not_made_together_are_refused(run, tmp_path):
    assert main(["data", str(tmp_path / "plain.txt"), "--out", str(tmp_path / "d"),
                 "--vocab", "300"]) == 0
    words = str(tmp_path / "d/train/tokenizer.json")
    assert main(["data", str(tmp_path / "plain.txt"), "--heldout-fraction", "0.1",
                 "--tokenizer", words, "--out", str(tmp_path / "e")]) == 0
    apart = {"train": str(tmp_path / "d/train"), "heldout": str(tmp_path / "e/heldout")}
    read(run, **apart)  # what is meant so, in two places
    shutil.rmtree(tmp_path / "d/heldout")
    shutil.copytree(tmp_path / "e/heldout", tmp_path / "d/heldout")
    with pytest.raises(UserError, match=r"not made together.*prepare both again"):
        read(run, train=str(tmp_path / "d"))


def test_an_end_token_that_no_file_names_is_given_by_a_flag_and_kept(run, tmp_path):
    path = written(tmp_path / "w", renamed("[A]", "[B]", "[C]"))
    with pytest.raises(UserError, match=r"--data\.end-token NAME"):
        read(run, tokenizer=str(path))
    corpus = read(run, tokenizer=str(path), end_token="[B]")
    assert corpus.tokenizer.end_id == 1
    assert corpus.train[0]["tokens"][0] == 1
    assert tokenizer.load(run_folder(run) / "tokenizer.json").end_id == 1
    kept = json.loads((run_folder(run) / "tokenizer_config.json").read_text())
    assert kept["eos_token"] == "[B]"
    read(run, tokenizer=str(path), end_token="[C]")  # nothing is trained yet
    assert tokenizer.load(run_folder(run) / "tokenizer.json").end_id == 2
