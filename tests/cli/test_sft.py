"""`dsjax sft` refuses in a sentence, before any work, and counts its steps from epochs."""

import json

import pytest

from dsjax.cli import sft
from dsjax.cli.main import main
from dsjax.cli.process import arguments
from dsjax.train import loop
from tests.train.tuning import small_sft


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = small_sft.make_base(tmp_path_factory.mktemp("cli") / "base", chats=False)
    small_sft.write_sums(folder.parent / "sums.jsonl", 20)
    return folder


def said(argv, capsys):
    status = main(["sft", *map(str, argv)])
    return status, capsys.readouterr().err


@pytest.mark.parametrize(("flags", "wanted"), [
    ([], "nothing to learn from; name a file of examples by --data FILE"),
    (["--data", "gone.jsonl"], "there is no file gone.jsonl of examples"),
    (["--data", "SUMS", "--lora.targets", "nothing"], "--lora.targets nothing is of no matrix"),
    (["--data", "SUMS", "--lora.rank", "0"], "--lora.rank 0 must be at least 1"),
    (["--data", "SUMS", "--lora.rank", "2", "--experts.threshold", "0.1"], "give one of them"),
    (["--data", "SUMS", "--experts.chosen", "1;2"], "is no list of experts by layer"),
    (["--data", "SUMS", "--train.seq-len", "4"], "sums.jsonl line 1 makes an example of"),
    (["--data", "SUMS", "--lora.rank", "2", "--parallel.pipe", "2", "--devices", "8"],
     "--parallel.pipe"),
    (["--data", "SUMS", "--data.heldout-fraction", "0"], "leave nothing to evaluate on"),
], ids=range(9))
def test_what_cannot_be_is_refused_before_any_work(flags, wanted, base, tmp_path, capsys):
    flags = [str(base.parent / "sums.jsonl") if flag == "SUMS" else flag for flag in flags]
    out = tmp_path / "out"
    status, error = said([base, *flags, "--output.folder", out], capsys)
    assert status == 2
    assert wanted in error
    assert not out.exists()


def test_messages_without_a_template_are_refused_by_line(base, tmp_path, capsys):
    path = small_sft.write(tmp_path / "m.jsonl", [
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}])
    status, error = said([base, "--data", path, "--output.folder", tmp_path / "out"], capsys)
    assert status == 2
    assert "m.jsonl line 1 has messages, and the checkpoint has no chat template" in error


@pytest.mark.parametrize(("flags", "steps"), [
    (["--sft.epochs", "3"], 4), ([], 2), (["--train.steps", "5"], 5)])
def test_steps_follow_from_epochs_unless_they_are_said(flags, steps, base, tmp_path, monkeypatch):
    """18 examples fill 5 rows; of 4 a step, three epochs are 15 / 4 steps and two are 10 / 4."""
    asked = []

    def train(run, console):
        asked.append(run)
        raise SystemExit(0)

    monkeypatch.setattr(loop, "train", train)
    data = str(base.parent / "sums.jsonl")
    assert main(["sft", str(base), "--data", data, "--train.seq-len", "80", "--train.batch-size",
                 "4", "--data.heldout-fraction", "0.1", *flags, "--output.folder",
                 str(tmp_path / "out")]) == 0
    assert asked[0].train.steps == steps
    assert asked[0].model.mtp_depth == 0
    assert asked[0].init_from == str(base)


def test_adapters_take_their_own_rate_and_the_plan_tells_parts(base, tmp_path, capsys):
    data = str(base.parent / "sums.jsonl")
    args = arguments.parse(sft.Sft, [str(base), "--data", data, "--lora.rank", "2"], "dsjax sft")
    assert args.run.lora.rank == 2
    assert main(["sft", str(base), "--data", data, "--train.seq-len", "80", "--lora.rank", "2",
                 "--plan", "--output.folder", str(tmp_path / "out")]) == 0
    told = capsys.readouterr().out
    assert "frozen" in told
    assert "in all" in told
    assert not (tmp_path / "out").exists()


def test_help_needs_no_folder_and_names_both_parts(capsys):
    assert main(["sft", "--help"]) == 0
    told = capsys.readouterr().out
    assert all(flag in told for flag in ("--lora.rank", "--experts.threshold", "--sft.epochs"))


def test_rewards_teach_no_part(capsys):
    assert main(["rl", "r1_zero_tiny", "--lora.rank", "2"]) == 2
    assert "leave --sft, --lora and --experts out" in capsys.readouterr().err


def test_a_base_without_a_tokenizer_is_refused(base, tmp_path, capsys):
    bare = tmp_path / "bare"
    bare.mkdir()
    for path in base.iterdir():
        if not path.name.startswith("tokenizer"):
            (bare / path.name).write_bytes(path.read_bytes())
    assert json.loads((bare / "config.json").read_text())
    status, error = said([bare, "--data", base.parent / "sums.jsonl", "--output.folder",
                          tmp_path / "out"], capsys)
    assert status == 2
    assert "tokenizer.json" in error
