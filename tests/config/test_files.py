"""A config file may hold any Python: what it makes wrong is named at once, before a run begins."""

import dataclasses

import numpy as np
import pytest

from dsjax.cli.main import main
from dsjax.config.load import load
from dsjax.config.run import DataConfig, OutputConfig, SequenceStage, TrainConfig
from dsjax.config.schedule import LearningRate, Piecewise
from dsjax.config.stored import run_from_json, run_to_json
from dsjax.errors import UserError

TINY = load("tiny")


def file(tmp_path, body, name="mine.py"):
    path = tmp_path / name
    path.write_text(
        "from dataclasses import replace as R\nfrom dsjax.config.load import load\n"
        f"import numpy as np\ndef config():\n    r = load('tiny')\n    {body}\n")
    return path


@pytest.mark.parametrize(("change", "words"), [
    ("model=None", "RunConfig.model=None is of type NoneType; give a ModelConfig"),
    ("train=None", "RunConfig.train=None"),
    ("learning_rate=None", "give a LearningRate or a StepDecay"),
    ("output='runs/x'", "RunConfig.output='runs/x' is of type str; give a OutputConfig"),
    ("name=5", "RunConfig.name=5 is of type int; give a text"),
    ("name=''", "RunConfig.name=''"),
    ("name='../other'", "'../other' is not a folder's name"),
    ("seed=1.5", "RunConfig.seed=1.5 is of type float; give a whole number"),
    ("seed=True", "RunConfig.seed=True is of type bool"),
    ("seed=-1", "-1 is not a seed"),
    ("seed=2**64", "63 bits"),
    ("seed=10**5000", "63 bits"),
    ("seed=np.int64(3)", "of type int64; give a whole number"),
    ("train=R(r.train, steps=4.5)", "TrainConfig.steps=4.5"),
    ("train=R(r.train, steps='4')", "TrainConfig.steps='4' is of type str"),
    ("precision=R(r.precision, matmul='fp9')", "PrecisionConfig.matmul='fp9' is not a choice"),
    ("train=R(r.train, curriculum=[])", "TrainConfig.curriculum=[] is not a tuple"),
    ("train=R(r.train, curriculum=((0, 64),))", "TrainConfig.curriculum=((0, 64),) is of type"),
    ("data=R(r.data, train=5)", "DataConfig.train=5"),
    ("data=R(r.data, train=b'x')", "DataConfig.train=b'x' is of type bytes; give a text"),
    ("data=R(r.data, heldout_fraction=float('nan'))", "heldout_fraction=nan is not a finite"),
    ("learning_rate=R(r.learning_rate, peak=np.float64(1e-3))", "of type float64; give a number"),
    ("learning_rate=R(r.learning_rate, peak=True)", "LearningRate.peak=True is of type bool"),
    ("optimizer=R(r.optimizer, clip=float('inf'))", "OptimizerConfig.clip=inf"),
    (r"output=R(r.output, folder='a\0b')", r"OutputConfig.folder='a\x00b' has the control"),
    (r"output=R(r.output, folder='\x1b[2J')", r"control character '\x1b'"),
    ("output=R(r.output, resume=1)", "OutputConfig.resume=1 is of type int; give True or False"),
    ("parallel=R(r.parallel, data=2.0)", "ParallelConfig.data=2.0"),
    ("model=R(r.model, moe=R(r.model.moe, experts='8'))", "MoEConfig.experts='8'"),
    ("model=R(r.model, attention=r.train)", "give a MLAConfig or a GQAConfig"),
])
def test_a_field_of_another_type_is_named_with_what_it_should_be(tmp_path, change, words, capsys):
    path = file(tmp_path, f"return R(r, {change})")
    out = tmp_path / "run"
    assert main(["train", str(path), "--output.folder", str(out)]) == 2
    said = capsys.readouterr().err
    assert words in said
    assert str(path) in said
    assert "line " in said
    assert not out.exists()


def test_what_is_taken_is_given_back_equal(tmp_path):
    run = dataclasses.replace(
        TINY, learning_rate=LearningRate(peak=1),
        data=DataConfig(train="caf\u00e9/[a] #1", tokenizer="\u65e5"),
        output=OutputConfig(folder="runs/\udce9"),
        train=TrainConfig(curriculum=(SequenceStage(0, 64),)), seed=2**63 - 1)
    run_to_json(run, tmp_path / "config.json")
    assert run_from_json(tmp_path / "config.json") == run


def test_values_that_json_does_not_give_back_are_refused_in_every_class():
    for wrong in (lambda: Piecewise((np.float32(1),)), lambda: Piecewise((1.0, 2.0), (True,)),
                  lambda: SequenceStage(0, 64.0), lambda: dataclasses.replace(TINY, seed=None)):
        with pytest.raises(ValueError, match="is of type"):
            wrong()


@pytest.mark.parametrize(("body", "words"), [
    ("import sys; sys.exit(0)", "leaves Python (0)"),
    ("raise SystemExit('stop')", "leaves Python (stop)"),
    ("return config()", "RecursionError"),
    ("raise ValueError('\\x1b[2J a\\nb')", r"\x1b[2J a"),
    ("raise KeyError('a')", "KeyError: 'a'"),
    ("import absent_module", "ModuleNotFoundError: No module named 'absent_module'"),
    ("return r, r", "returned tuple"),
    ("return R", "returned function"),
])
def test_a_config_that_fails_is_named_with_its_line(tmp_path, body, words, capsys):
    path = file(tmp_path, body)
    for command in ("train", "show"):
        assert main([command, str(path)]) == 2
        said = capsys.readouterr()
        assert words in said.err
        assert str(path) in said.err
        assert said.err.count("\n") == 1


@pytest.mark.parametrize(("data", "words"), [
    (b"a\0b", "null bytes"),
    (b"x = 'caf\xe9'\n", "utf-8"),
    (b"(" * 9999, "nest"),
    (b"def config(a): 1", "TypeError"),
    (b"", "no function config"),
    (b"config = 3", "NoneType"),
    (b"def config(:", "line 1: "),
])
def test_files_that_hold_no_python_are_refused(tmp_path, data, words):
    path = tmp_path / "wrong.py"
    path.write_bytes(data)
    with pytest.raises(UserError, match=words) as caught:
        load(str(path))
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_what_is_no_file_of_a_config_is_refused(tmp_path):
    (tmp_path / "words.txt").write_text("x")
    for name, words in ((tmp_path, "a folder without"), (tmp_path / "words.txt", "is not a config"),
                        ("a\0b.py", "there is no config"), ("x" * 5000 + ".py", "too long")):
        with pytest.raises(UserError, match=words):
            load(str(name))


def test_what_a_config_prints_does_not_mix_with_the_answer(tmp_path, capsys):
    path = file(tmp_path, "print('hello'); return r")
    assert main(["show", str(path), "--json"]) == 0
    said = capsys.readouterr()
    assert said.out.startswith("{")
    assert said.err == "hello\n"


def test_an_edit_within_a_second_is_seen_and_a_file_may_define_classes(tmp_path):
    path = file(tmp_path, "return R(r, seed=1)")
    assert load(str(path)).seed == 1
    path.write_text(path.read_text().replace("seed=1", "seed=2"))
    assert load(str(path)).seed == 2
    assert not (tmp_path / "__pycache__").exists()
    path.write_text("from __future__ import annotations\nfrom dataclasses import dataclass\n"
                    "@dataclass\nclass Mine:\n    seed: int = 4\n" + path.read_text()
                    .replace("seed=2", "seed=Mine().seed"))
    assert load(str(path)).seed == 4


def test_a_runs_folder_is_a_config_whose_place_is_the_folder(tmp_path, monkeypatch):
    folder = tmp_path / "was moved"
    folder.mkdir()
    run = dataclasses.replace(TINY, output=OutputConfig(folder="runs/before", keep=7), seed=5)
    run_to_json(run, folder / "config.json")
    expected = dataclasses.replace(run, output=OutputConfig(folder=str(folder), keep=7))
    assert load(str(folder)) == load(f"{folder}/") == load(str(folder / "config.json")) == expected
    monkeypatch.chdir(tmp_path)
    assert load("was moved").output.folder == "was moved"
    (tmp_path / "tiny").mkdir()
    assert load("tiny") == TINY  # a bare name is the project's config first
    with pytest.raises(UserError, match="tiny is a folder without"):
        load("./tiny")
    (folder / "config.json").write_text('{"model_type": "deepseek_v3"}')
    with pytest.raises(UserError, match=r"released checkpoint.*dsjax convert hf-to-dsjax"):
        load("was moved")
