"""A config is exactly what its file and the flags say, or one sentence says what is wrong."""

import dataclasses
import json
from pathlib import Path

import pytest

from dsjax.config import load as loading
from dsjax.config import stored
from dsjax.config.flags import commandline
from dsjax.config.flags.commandline import override
from dsjax.config.load import load
from dsjax.config.model import GQAConfig, MLAConfig, ModelConfig, MoEConfig, RopeConfig, YarnConfig
from dsjax.config.run import RunConfig, SequenceStage, TrainConfig, difference
from dsjax.config.schedule import LearningRate
from dsjax.config.stored import run_from_json, run_to_json
from dsjax.errors import UserError

MLA = MLAConfig(heads=3, kv_rank=8, nope_dim=6, rope_dim=4, value_dim=5, q_rank=7)
MOE = MoEConfig(experts=12, experts_per_token=2, expert_dim=9, groups=3, groups_per_token=2)
MODEL = ModelConfig(101, 16, 4, 1, 24, MLA, MOE, mtp_depth=1)
RUN = RunConfig("small_test", MODEL, learning_rate=LearningRate(0.003, low=0.001), seed=5)
DENSE = dataclasses.replace(
    RUN,
    model=dataclasses.replace(
        MODEL,
        moe=None,
        dense_layers=4,
        attention=GQAConfig(4, 2, 6),
        rope=RopeConfig(yarn=YarnConfig(factor=3)),
    ),
    train=TrainConfig(steps=9, seq_len=64, curriculum=(SequenceStage(0, 16), SequenceStage(5, 64))),
)
FILE = '''"""A page of science."""
from tests_config_values import RUN
def config():
    return RUN
'''


def _refusal(*argv, run=RUN):
    with pytest.raises(UserError) as caught:
        override(run, argv)
    text = str(caught.value)
    assert "\n" not in text
    assert len(text) < 200
    return text


def test_flags_replace_the_fields_they_name_and_nothing_else():
    flags = "--model.layers 3 --train.steps=100 --model.moe.expert_dim 8 --output.no-resume"
    got = override(RUN, flags.split())
    want = dataclasses.replace(
        RUN,
        model=dataclasses.replace(MODEL, layers=3, moe=dataclasses.replace(MOE, expert_dim=8)),
        train=dataclasses.replace(RUN.train, steps=100),
        output=dataclasses.replace(RUN.output, resume=False),
    )
    assert got == want
    assert type(got.model.attention) is MLAConfig
    assert RUN.model == MODEL  # the default that was given is not changed


@pytest.mark.parametrize("run", [RUN, DENSE])
def test_no_flags_change_nothing(run):
    assert override(run, []) == run


def test_an_optional_part_comes_and_goes_by_flags():
    assert override(RUN, ["--model.rope.yarn.factor", "8"]).model.rope.yarn == YarnConfig(8.0)
    assert override(DENSE, ["--model.rope.yarn", "None"]).model.rope.yarn is None
    assert override(RUN, ["--model.attention.q-rank", "None"]).model.attention.q_rank is None
    gone = override(RUN, ["--model.moe", "None", "--model.dense-layers=4"])
    assert gone.model == dataclasses.replace(MODEL, moe=None, dense_layers=4)
    prefix = "--model.moe."
    flags = [prefix + "experts=8", prefix + "experts-per-token=2", prefix + "expert-dim=7"]
    back = override(DENSE, [*flags, "--model.dense-layers", "1"])
    assert back.model.moe == MoEConfig(8, 2, 7)


def test_a_union_changes_its_class_by_name():
    flags = "--model.attention gqa --model.attention.heads 6 --model.attention.kv-heads 3"
    got = override(RUN, [*flags.split(), "--model.attention.head-dim", "4"])
    assert got.model.attention == GQAConfig(6, 3, 4)
    assert "mla or gqa" in _refusal("--model.attention", "mamba")
    assert "--model.attention.head-dim" in _refusal(*flags.split())


def test_a_curriculum_is_written_as_steps_and_lengths():
    got = override(RUN, ["--train.curriculum", "0:64", "30:128", "--train.steps", "7"])
    assert got.train.curriculum == (SequenceStage(0, 64), SequenceStage(30, 128))
    got = override(RUN, ["--train.curriculum", "0:64", "0.3:128"])
    assert got.train.curriculum[1].from_step == 0.3
    for bad in ("30", "a:64", "0:64.5", "1.5:64", "0:64:2", ":"):
        assert "FROM_STEP:SEQ_LEN" in _refusal("--train.curriculum", "0:64", bad)


def test_lengths_of_a_schedule_are_read_as_steps_or_shares():
    flags = ["--learning-rate.warmup-steps", "30", "--learning-rate.cosine-steps", "0.5"]
    got = override(RUN, flags)
    assert (got.learning_rate.warmup_steps, got.learning_rate.cosine_steps) == (30, 0.5)
    assert type(got.learning_rate.warmup_steps) is int
    assert "2.5" in _refusal("--learning-rate.warmup-steps", "2.5")


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--model.layer", "3"], ["no flag --model.layer,", "did you mean --model.layers;"]),
        (["--kv-rank", "3"], ["did you mean --model.attention.kv-rank"]),
        (["--wrong", "3"], ["no flag --wrong;"]),
        (["--model.layers", "x"], ["--model.layers takes INT, not 'x'"]),
        (["--model.layers"], ["--model.layers needs a value"]),
        (["--precision", "fp9"], ["--precision.matmul is 'fp9'", "'bf16'"]),
        (["more"], ["no flag: more"]),
        (["--model.moe.experts", "7"],
         ["--model.moe.experts 7 is not divisible by --model.moe.groups 3; choose"]),
        (["--model.moe", "None"], ["--model.moe None leaves 3 blocks", "--model.dense-layers 4"]),
    ],
)
def test_a_wrong_flag_gets_one_sentence(argv, words):
    text = _refusal(*argv)
    for word in words:
        assert word in text


def test_help_shows_every_field_with_its_docstring(capsys):
    with pytest.raises(SystemExit) as leave:
        override(RUN, ["--help"], prog="dsjax train tiny")
    assert leave.value.code == 0
    text = capsys.readouterr().out
    assert "usage: dsjax train tiny" in text
    for flag in commandline.flags(DENSE, RUN)[::2]:
        assert flag in text
    assert "Rotations over the original length" not in text  # there is no yarn
    assert "attention heads" in text


def test_a_file_is_run_and_a_name_is_found_in_the_projects_folder(tmp_path, monkeypatch):
    folder = tmp_path / "configs"
    folder.mkdir()
    text = FILE.replace("from tests_config_values", f"from {__name__}")
    (folder / "my_tiny.py").write_text(text)
    assert load(str(folder / "my_tiny.py")) == RUN
    monkeypatch.setattr(loading, "FOLDER", folder)
    assert load("my_tiny") == load("My-Tiny") == RUN
    for wrong in ("my_tinny", str(folder / "my_tinny.py")):
        with pytest.raises(UserError, match=r"did you mean .*my_tiny"):
            load(wrong)
    with pytest.raises(UserError, match="choose from my_tiny, or give the path"):
        load("quite_another")


def test_every_config_of_the_project_loads_by_its_name():
    for name in loading.names():
        run = load(name)
        assert isinstance(run, RunConfig)
        assert override(run, []) == run


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("x = 1\n", "has no function config()"),
        ("def config():\n    return 3\n", "returned int"),
        ("def config(:\n", "line 1: "),
        ("\ndef config():\n    return {}['a']\n", "line 3: KeyError: 'a'"),
        ("from dsjax.config.model import *\nGQAConfig(3, 2, 4)\n",
         "line 2: GQAConfig.heads=3 is not"),
        ("\nraise ValueError('boo')\n", "line 2: ValueError: boo; correct the file"),
        ("assert False\n", "line 1: AssertionError; correct the file"),
        ("import no_such_module\n", "'no_such_module'; install what it imports"),
    ],
)
def test_a_broken_config_file_is_named_with_the_line(tmp_path, text, words):
    path = tmp_path / "broken.py"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        load(str(path))
    assert str(path) in str(caught.value)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("run", [
    RUN, DENSE, dataclasses.replace(RUN, learning_rate=LearningRate(1))])
def test_json_gives_the_same_run(tmp_path, run):
    run_to_json(run, tmp_path / "run.json")
    got = run_from_json(tmp_path / "run.json")
    assert got == run
    assert repr(got) == repr(run)  # also 1 and 1.0 stay what they were
    assert difference(got, run, "run") is None


OLDER = [
    "--train.steps 40 --train.batch-size 12 --train.seq-len 128 --train.batch-size-start 4",
    "--train.batch-size-ramp-steps 10 --train.batch-size-multiple 2 --train.microbatches 2",
    "--train.curriculum 0:32 20:64 --precision bf16 --precision.activations bfloat16",
    "--learning-rate.peak 0.002 --output.folder runs/old --machine.remat full --machine.unroll 2",
    "--machine.fp8-matmul codes --output.eval-every 7 --output.eval-batches 3 --output.keep 5",
    "--output.save-every 9 --output.log-every 4 --output.tensorboard --output.no-resume",
    "--parallel.data 2 --parallel.interleave --init-from runs/lite",
]
"""Flags of the runs in older/, each written by the commit that names its file."""


@pytest.mark.parametrize(("commit", "more"), [
    ("0273670", "--learning-rate.warmup-steps 30 --learning-rate.constant-steps 240 "
     "--learning-rate.cosine-steps 290 --learning-rate.low-steps 20 --learning-rate.last-steps 20"),
    ("d1b936c", "--profile 2:3"),
])
def test_configs_of_earlier_versions_are_read_in_todays_names(commit, more):
    got = run_from_json(Path(__file__).parent / "older" / f"{commit}.json")
    assert got == override(load("tiny"), " ".join([*OLDER, more]).split())


def test_a_config_with_both_names_of_a_field_is_refused(tmp_path):
    path = _stored(tmp_path, lambda d: d["train"].update(length=64))
    with pytest.raises(UserError, match="unknown key 'length'"):
        run_from_json(path)


@pytest.mark.parametrize("old", stored.RENAMED)
def test_flags_of_earlier_versions_name_those_of_today(old):
    flag = f"--{stored.RENAMED[old]}".replace("_", "-")
    said = _refusal(f"--{old}".replace("_", "-"), "1")
    assert flag in said
    assert "another name" in said


@pytest.mark.parametrize(("old", "new"), [
    ("--rate.peak=3", "--learning-rate.peak"), ("--place.no-resume", "--output.no-resume"),
    ("--place.eval_every", "--output.eval-every"), ("--train.batch-start", "batch-size-start")])
def test_parts_and_switches_of_earlier_versions_name_those_of_today(old, new):
    assert f"use {new}" in _refusal(old).replace("--train.", "")


def test_a_difference_is_named_by_its_first_field():
    moved = dataclasses.replace(RUN, model=dataclasses.replace(MODEL, layers=5, mtp_depth=2))
    assert difference(RUN, moved, "run") == "run.model.layers=4, not 5"
    assert difference(RUN.model, DENSE.model, "model") == "model.dense_layers=1, not 4"
    assert difference(MLA, GQAConfig(4, 2, 6), "attention") == "attention=MLAConfig, not GQAConfig"
    assert difference(MODEL.rope, DENSE.model.rope, "rope") == "rope.yarn=None, not YarnConfig"


def test_a_killed_writer_leaves_the_run_that_was_there(tmp_path, monkeypatch):
    path = tmp_path / "run.json"
    run_to_json(RUN, path)
    monkeypatch.setattr("os.replace", lambda *_: pytest.fail("killed"))
    with pytest.raises(pytest.fail.Exception):
        run_to_json(DENSE, path)
    assert run_from_json(path) == RUN


def _stored(tmp_path, change):
    path = tmp_path / "run.json"
    run_to_json(RUN, path)
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))
    return path


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d: d["model"].update(layer=3), "run.model has the unknown key 'layer', did"),
        (lambda d: d["model"].update(layers="3"), "ModelConfig.layers='3' is of type"),
        (lambda d: d["model"].update(layers=True), "ModelConfig.layers=True is of type bool"),
        (lambda d: d["model"].pop("layers"), "run.model lacks 'layers'"),
        (lambda d: d["model"]["attention"].update(kind="RNN"), "run.model.attention.kind is 'RNN'"),
        (lambda d: d["model"]["moe"].update(experts=7), "experts=7 is not divisible by groups=3"),
        (lambda d: d["precision"].update(matmul="fp9"), "PrecisionConfig.matmul='fp9'"),
        (lambda d: d["train"].update(curriculum=[1]), "TrainConfig.curriculum=(1,) is of type int"),
        (lambda d: d["model"].update(attention={"kind": ["MLA"]}), "attention.kind is ['MLA']"),
        (lambda d: d["optimizer"].update(eps=10**400), "OptimizerConfig.eps=0x1b4e"),
        (lambda d: d["data"].update(train=["x" * 999]), "DataConfig.train=['xxx"),
        (lambda d: d.update(model=None), "RunConfig.model=None is of type"),
    ],
)
def test_json_that_is_no_run_is_refused_by_name(tmp_path, change, words):
    with pytest.raises(UserError) as caught:
        run_from_json(_stored(tmp_path, change))
    assert words in str(caught.value)


def test_a_field_added_since_takes_its_default(tmp_path):
    path = _stored(tmp_path, lambda d: d.pop("seed"))
    assert run_from_json(path) == dataclasses.replace(RUN, seed=0)


def test_json_that_is_missing_or_cut_is_a_sentence(tmp_path):
    with pytest.raises(UserError, match=r"absent.json is missing"):
        run_from_json(tmp_path / "absent.json")
    (tmp_path / "cut.json").write_text('{"name": ')
    with pytest.raises(UserError, match=r"cut.json is not JSON"):
        run_from_json(tmp_path / "cut.json")


@pytest.mark.parametrize("content", [
    b"", b"\0" * 30, b"[]", b"3", b"null", b"{", b"\xff\xfe", b"[" * 10**5, b'{"a":' * 10**5,
    b"9" * 10**4, b"{}", b'{"name": 1}',
])
def test_a_damaged_config_is_refused_with_its_path(content, tmp_path):
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"config.json.*put back the config.json of the run"):
        run_from_json(path)
