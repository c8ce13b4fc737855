"""Every command line is read alike: with a space or `=`, in digits, the last one counts."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import pytest

from dsjax.cli.main import available, main
from dsjax.config import load
from dsjax.config.flags import commandline
from dsjax.config.flags.commandline import read
from dsjax.config.flags.flag_tree import Mark, Word
from dsjax.config.flags.typed import Text
from dsjax.errors import UserError


@dataclass(frozen=True)
class Args:
    """What a test asks for."""

    first: Annotated[str, Word("FIRST")]
    """A word without a flag."""
    more: Annotated[tuple[str, ...], Word("MORE")] = ()
    on: Path | None = None
    """A path."""
    number: int = 1
    kind: Literal["a", "b"] = "a"
    again: Annotated[tuple[Text, ...], Mark.REPEATED] = ()
    many: tuple[float, ...] = ()
    is_loud: bool = False


@pytest.mark.parametrize("words", ["a --on x b", "--on=x a b", "a --on y b --on=x", "a b --on x"])
def test_a_flag_is_taken_in_either_form_and_the_last_one_counts(words):
    assert read(Args, words.split(), "test") == Args("a", ("b",), Path("x"))


def test_every_kind_of_field_is_read():
    line = "a --number 1_000 --kind b --again= --again x --many 1 -2 .5e1 --is-loud --is_loud"
    assert read(Args, line.split(), "test") == Args(
        "a", number=1000, kind="b", again=("", "x"), many=(1.0, -2.0, 5.0), is_loud=True)
    assert not read(Args, ["a", "--is-loud", "--no-is-loud"], "test").is_loud


@pytest.mark.parametrize(("line", "said"), [
    ("a --on", "--on needs a value"),
    ("a --on --number 2", "--on needs a value"),
    ("a --on=", "--on is empty"),
    ("a --is-loud=yes", "--is-loud is a switch and takes no value"),
    ("--on x", "give FIRST"),
    ("a --number 1.5", "--number takes INT, not '1.5'"),
    ("a --many 1 x", "--many takes FLOAT, not 'x'"),
    ("a --kind c", "--kind is 'c'; choose from 'a', 'b'"),
    ("a -o x", "there is no flag -o;"),
])
def test_a_line_that_is_wrong_is_refused_with_the_flag(line, said):
    with pytest.raises(UserError, match=re.escape(said)):
        read(Args, line.split(), "test")


@pytest.mark.parametrize("wrong", ["1e3", "nan", "", " 1", "\u00b2", "\u0663", "1__0", "9" * 5000,
                                   "0x10", "1\n"])
def test_numbers_are_ascii_digits(wrong):
    with pytest.raises(UserError, match=r"--number (takes INT|is empty)") as caught:
        read(Args, ["a", "--number", wrong], "test")
    assert len(str(caught.value)) < 200


def test_the_help_of_a_command_names_every_flag_with_its_docstring(capsys):
    with pytest.raises(SystemExit) as leave:
        read(Args, ["--help"], "dsjax test")
    assert leave.value.code == 0
    said = capsys.readouterr().out
    assert said.startswith("usage: dsjax test FIRST MORE [--FLAG VALUE]\n\nWhat a test asks for.")
    for words in ("A word without a flag.", "--on PATH", "A path.", "--kind a|b", "(default: 1)",
                  "--is-loud, --no-is-loud"):
        assert words in said


@pytest.mark.parametrize("line", [
    "--model.layers 5 --model.dense-layers 2 --output.no-resume",
    "--model.attention gqa --model.attention.heads 4 --model.attention.kv-heads 2 "
    "--model.attention.head-dim 8",
    "--model.moe None --model.dense-layers 4",
    "--model.rope.yarn.factor 40 --train.curriculum 0:64 0.5:128 --output.tensorboard",
    "--data.tokenizer None --optimizer.eps 3e-09 --data.train=-books/*.txt",
])
def test_the_difference_of_two_runs_is_the_flags_between_them(line):
    run = load.load("tiny")
    changed = commandline.override(run, [*line.split(), "--data.heldout", "two words"])
    words = commandline.flags(run, changed)
    assert commandline.override(run, words) == changed
    assert commandline.flags(run, run) == []


@pytest.mark.parametrize(("line", "words"), [
    ("show tiny --seq-len=0", "--seq-len 0"),
    ("show tiny --seq-len= --json", "--seq-len is empty"),
    ("loads nowhere", "nowhere"),
    ("show tiny --json=1", "--json is a switch"),
    ("show tiny --length 4", "did you mean --seq-len or --train.seq-len;"),
    ("compile tiny --on=nowhere", "nowhere"),
    ("train tiny --devices=\u00b2", "--devices"),
    ("train tiny --devices 1000000", "up to 4,096"),
    ("train tiny --device 2", "did you mean --devices"),
    ("train tiny --coordinator=localhost:1 --processes=2 --process=5", "--process 5"),
    ("train tiny --coordinator= --processes=2 --process=1", "--coordinator is empty"),
    ("train tiny --seed -1", "--seed -1 is not a seed"),
    ("train tiny --seed 9223372036854775808", "--seed 9223372036854775808"),
    ("train tiny --train.steps=0", "--train.steps 0 must be at least 1"),
    ("train tiny --learning-rate.peak nan", "--learning-rate.peak nan is not a finite number"),
    ("train tiny --model.moe.expert 8", "did you mean --model.moe.experts;"),
    ("train tiny --out x", "did you mean --output.folder;"),
    ("generate nowhere --seed 9223372036854775808", "--seed 9223372036854775808 is not a seed"),
    ("data nowhere --seed -1", "--seed -1 is not a seed"),
    ("evaluate nowhere --tasks=", "--tasks is empty; name one"),
    ("audit --against=", "one of the names of --against is empty"),
    ("bench train --steps=\u0664", "--steps"),
    ("bench decode --shape=huge", "--shape is 'huge'; choose from 'tiny', 'small'"),
    ("bench train --stepz 4", "there is no flag --stepz"),
    ("bench links --tokens 0", "--tokens 0"),
    ("bench serve --repeats 0", "--repeats 0 must be at least 1"),
    ("bench prefill --steps 3", "--steps 3 are of decoding"),
    ("bench links tiny more", "belong to no flag: more"),
    ("bench layouts --devices=99999", "up to 4,096"),
    ("pipeline nope --ranks 2 --microbatches 4", "nope"),
    ("pipeline 1f1b --ranks 0 --microbatches 4", "ranks"),
    ("pipeline 1f1b --ranks 2 --microbatches -1", "microbatches"),
    ("pipeline 1f1b --ranks 1000 --microbatches 1000000", "cells"),
    ("pipeline interleaved --ranks 2 --microbatches 4 --chunks -1", "chunks"),
    ("pipeline 1f1b --ranks 2 --microbatches 4 --chunks 3", "leave --chunks out"),
    ("pipeline 1f1b --ranks 2 --microbatches 4 --times.forward nan", "forward"),
    ("pipeline 1f1b --ranks 2 --microbatches 4 --svg .", "--svg"),
    ("convert hf-to-dsjax nowhere x --mtp maybe", "--mtp is 'maybe'"),
    ("convert hf-to-dsjax nowhere x", "nowhere"),
    ("generate nowhere --temperature=\u00b2", "--temperature takes FLOAT"),
    ("generate nowhere --top-p", "--top-p needs a value"),
    ("train tiny --", "there is no flag --"),
    ("train tiny extra", "belong to no flag: extra"),
    ("train --train.steps 5 tiny", "stands where a CONFIG should"),
    ("demo --output.folder=", "--output.folder is empty"),
    ("pipeline gpipe --ranks 4 --microbatches 8 --times.forward 1e308", "--times.forward 1e+308"),
    ("pipeline gpipe --ranks 4 --microbatches 8 --times.transfer 1e-300 --json",
     "--times.transfer 1e-300 is not a duration"),
    ("pipeline dualpie --ranks 8 --microbatches 20", "did you mean dualpipe or"),
    ("pipeline dualpipe --ranks 3 --microbatches 8", "--ranks 3 is odd"),
    ("pipeline interleaved --ranks 3 --microbatches 8", "--microbatches 8; choose"),
    ("help", "did you mean '--help'"),
    ("-v", "--help or --version"),
    ("--quiet", "--help or --version"),
    ("bench --stesp 3", "there is no flag --stesp"),
    ("bench train --stesp 3", "did you mean --steps"),
    ("bench layuots", "did you mean layouts;"),
    ("convert hf a b", "did you mean hf-to-dsjax;"),
    ("show tiny --model.moe None --model.moe.experts 4",
     "--model.moe.experts does not exist with --model.moe None"),
    ("train tiny --coordinator localhost:99999 --processes 2 --process 0",
     "--coordinator localhost:99999 has the port 99999"),
])
def test_every_command_answers_in_a_sentence(line, words, capsys):
    assert main(line.split()) == 2
    said = capsys.readouterr()
    assert words in said.err
    assert said.err.startswith("dsjax: ")
    assert said.err.count("\n") == 1
    assert not said.out


BENCHES = ("train", "decode", "gemm", "layouts", "links")
LINES = [*available(), *(f"bench {name}" for name in BENCHES), "convert hf-to-dsjax",
         "convert dsjax-to-hf", "show tiny", "train tiny --train.steps 3", "compile tiny",
         "demo --seed 3", "bench links tiny", "bench layouts --devices 2", "loads x"]


@pytest.mark.parametrize("line", LINES)
@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_is_given_wherever_it_is_asked_for(line, flag, capsys):
    assert main([*line.split(), flag]) == 0
    said = capsys.readouterr()
    assert said.out.startswith(f"usage: dsjax {' '.join(line.split()[:1])}")
    assert not said.err


@pytest.mark.parametrize(("flag", "value", "words"), [
    ("--seed", "\u0663", "takes INT, not '\u0663'"),
    ("--seed", " 5", "takes INT"),
    ("--seed", "9" * 5000, "takes INT, not '9999"),
    ("--learning-rate.peak", "\u0663", "takes FLOAT"),
    ("--learning-rate.peak", "1e400", "--learning-rate.peak inf is not a finite number"),
    ("--model.attention.q-rank", "x", "takes None or INT, not 'x'"),
    ("--data.train", "", "--data.train is empty"),
    ("--output.folder", "", "--output.folder is empty"),
    ("--output.folder", "a\0b", "--output.folder"),
    ("--lr", "1e-3", "did you mean --learning-rate.peak;"),
    ("--batch-size", "4", "did you mean --train.batch-size;"),
    ("--model.num-layers", "4", "did you mean --model.layers;"),
    ("--parallel.experts", "4", "did you mean --parallel.expert;"),
    ("--model.heads", "4", "did you mean --model.attention.heads;"),
])
@pytest.mark.parametrize("is_joined", [False, True])
def test_values_of_fields_are_held_to_the_same_rules_in_either_form(
        flag, value, words, is_joined, capsys):
    words_typed = [f"{flag}={value}"] if is_joined else [flag, value]
    assert main(["show", "tiny", *words_typed]) == 2
    said = capsys.readouterr().err
    assert words in said
    assert len(said) < 250


def test_none_and_underscores_are_values(capsys):
    line = ("show tiny --json --model.attention.q-rank None --train.steps 1_000 "
            "--learning-rate.peak=.5e-3")
    assert main(line.split()) == 0


@pytest.mark.parametrize(("flags_typed", "words"), [
    ("--train.microbatches 3", "choose --train.microbatches from [1, 2, 4, 8]"),
    ("--train.batch-size-start 9", "is not between 1 and --train.batch-size 8"),
    ("--train.batch-size-start 3 --train.batch-size-multiple 2", "--train.batch-size-multiple 2"),
    ("--train.batch-size-start 6 --train.microbatches 4", "--train.microbatches 4"),
    ("--train.curriculum 0:100", "--train.seq-len 256"),
    ("--parallel.expert 4 --parallel.expert-nodes 3", "choose --parallel.expert-nodes from"),
    ("--parallel.pipe 2 --parallel.fsdp 2", "choose --parallel.fsdp 1"),
    ("--model.moe.groups 7", "choose --model.moe.groups from [1, 2, 4, 8, 16]"),
    ("--model.moe.groups-per-token 9", "--model.moe.groups-per-token 9"),
    ("--model.moe.experts-per-token 1", "use --model.moe.no-is-normalized"),
    ("--model.moe.capacity-factor 0", "--model.moe.capacity-factor 0.0"),
    ("--model.dense-layers 99", "--model.layers 4"),
    ("--model.mtp-depth -1", "--model.mtp-depth -1"),
    ("--model.rope.yarn.beta-fast 0.1", "--model.rope.yarn.beta-slow 1.0"),
    ("--optimizer.beta1 1", "--optimizer.beta1 1.0"),
    ("--output.keep 0", "--output.keep 0"),
    ("--output.eval-every -1", "--output.eval-every -1"),
    ("--learning-rate.low 5", "--learning-rate.peak"),
])
def test_fields_are_named_as_they_are_typed_and_every_refusal_has_a_remedy(
        flags_typed, words, capsys):
    assert main(["show", "tiny", *flags_typed.split()]) == 2
    said = capsys.readouterr().err
    assert words in said
    assert "=" not in said
    assert "; " in said
    assert "--help" not in said
