"""Flags that a command reads itself are read alike: with a space or `=`, in digits, once."""

import pytest

from dsjax.cli.main import main
from dsjax.config import flags
from dsjax.errors import UserError


@pytest.mark.parametrize("words", [["a", "--on", "x", "b"], ["--on=x", "a", "b"],
                                   ["a", "--on", "y", "b", "--on=x"]])
def test_a_flag_is_taken_in_either_form_and_the_last_one_counts(words):
    assert flags.take(words, "--on") == ("x", ["a", "b"])
    assert flags.take(["a", "--once", "x"], "--on") == (None, ["a", "--once", "x"])


@pytest.mark.parametrize("words", [["--on"], ["--on="], ["--on", ""], ["--on", "--json"]])
def test_a_flag_without_a_value_is_refused(words):
    with pytest.raises(UserError, match="--on needs a value"):
        flags.take(words, "--on")


def test_a_switch_takes_no_value():
    assert flags.take_switch(["a", "--json"], "--json") == (True, ["a"])
    assert flags.take_switch(["a"], "--json") == (False, ["a"])
    with pytest.raises(UserError, match="--json=yes is a switch"):
        flags.take_switch(["--json=yes"], "--json")


def test_numbers_are_digits_within_their_range():
    assert flags.whole("1_000", "--n") == 1000
    assert flags.whole("+7", "--n") == 7
    assert flags.whole("0", "--n", least=0) == 0
    for wrong in ("0", "-1", "1.5", "1e3", "nan", "", " 1", "\u00b2", "\u0663", "1__0", "9" * 5000,
                  str(2**63), "0x10", "1\n"):
        with pytest.raises(UserError, match=r"(?s)--n .*is not a whole number from 1 on") as caught:
            flags.whole(wrong, "--n")
        assert len(str(caught.value)) < 200
    with pytest.raises(UserError, match="from 1 up to 4,096"):
        flags.whole("4097", "--n", most=4096)


@pytest.mark.parametrize(("line", "words"), [
    ("show tiny --length=0", "--length 0"),
    ("show tiny --length= --json", "--length needs a value"),
    ("show --loads=nowhere", "nowhere"),
    ("show tiny --json=1", "--json=1 is a switch"),
    ("show tiny --lenght 4", "did you mean --length"),
    ("compile tiny --on=nowhere", "nowhere"),
    ("train tiny --devices=\u00b2", "--devices"),
    ("train tiny --devices 1000000", "up to 4,096"),
    ("train tiny --device 2", "did you mean --devices"),
    ("train tiny --coordinator=localhost:1 --processes=2 --process=5", "--process 5"),
    ("train tiny --coordinator= --processes=2 --process=1", "--coordinator needs a value"),
    ("train tiny --seed -1", "--seed -1 is not a seed"),
    ("train tiny --seed 9223372036854775808", "--seed 9223372036854775808"),
    ("train tiny --train.steps=0", "--train.steps 0 must be at least 1"),
    ("train tiny --learning-rate.peak nan", "--learning-rate.peak nan is not a finite number"),
    ("train tiny --model.moe.expert 8", "did you mean --model.moe.experts;"),
    ("train tiny --out x", "did you mean --output.folder;"),
    ("generate nowhere --seed 9223372036854775808", "--seed 9223372036854775808 is not a seed"),
    ("data nowhere --seed -1", "--seed -1 is not a seed"),
    ("bench train --steps=\u0664", "--steps"),
    ("bench decode --shape=huge", "--shape huge: choose from tiny, small"),
    ("bench train --stepz 4", "--stepz 4 is not understood"),
    ("bench links --tokens 0", "--tokens 0"),
    ("bench links tiny more", "more is not understood"),
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
    ("bench --stesp 3", "--stesp stands where a benchmark should"),
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


@pytest.mark.parametrize("line", ["bench train --help", "bench decode -h", "bench --help",
                                  "bench gemm --help", "bench links tiny --help",
                                  "bench layouts --devices 2 --help", "show --loads x --help"])
def test_help_is_given_wherever_it_is_asked_for(line, capsys):
    assert main(line.split()) == 0
    assert capsys.readouterr().out.startswith("usage: dsjax")


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
