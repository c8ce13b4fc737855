"""Arguments are read or refused in a sentence, and so is a harness that is not there."""

import importlib.util
from importlib import metadata

import pytest

from dsjax.config.parallel import ParallelConfig
from dsjax.errors import UserError
from dsjax.evaluate.harness import __main__ as command
from dsjax.evaluate.harness import arguments

IS_THERE = importlib.util.find_spec("lm_eval") is not None


def test_arguments_are_those_of_the_command_line():
    found = arguments.read({"folder": 2024, "precision": "bf16", "data": 2, "expert": 4,
                            "context": 128, "draft": True, "seed": 3})
    assert found.folder == "2024"
    assert found.choice.precision == "bf16"
    assert found.choice.parallel == ParallelConfig(data=2, expert=4)
    assert (found.setting.max_len, found.setting.draft, found.setting.slots) == (128, True, 16)


@pytest.mark.parametrize(("batch_size", "most", "slots"), [
    (None, None, 16), ("auto", None, 16), ("auto:4", None, 16), (1, None, 16), ("1", None, 16),
    ("auto", 5, 5), (8, None, 8), ("8", 5, 8)])
def test_batch_sizes_are_requests_at_once(batch_size, most, slots):
    assert arguments.read({"folder": "x"}, batch_size, most).slots == slots


@pytest.mark.parametrize(("given", "said"), [
    ({}, "names no folder"), ({"folder": ""}, "names no folder"),
    ({"folder": "x", "precison": "bf16"}, "no 'precison', did you mean precision"),
    ({"folder": "x", "precision": "int4"}, "precision='int4' is not a choice; use fp32"),
    ({"folder": "x", "context": "long"}, "context='long' is of type str; give a whole number"),
    ({"folder": "x", "context": 1}, "context=1 must be at least 2"),
    ({"folder": "x", "slots": 0}, "slots=0 must be at least 1"),
    ({"folder": "x", "max_gen_toks": 0}, "max_gen_toks=0"),
    ({"folder": "x", "seed": -1}, "seed=-1"),
    ({"folder": "x", "draft": 1}, "draft=1 is of type int; give True or False"),
    ({"folder": "x", "pages": 0}, "pages=0")])
def test_what_is_wrong_is_named(given, said):
    with pytest.raises(UserError, match=said):
        arguments.read(given)


@pytest.mark.parametrize(("flags", "said"), [
    ({"batch_size": "auto:x"}, "batch size 'auto:x'"), ({"batch_size": 0}, "batch size '0'"),
    ({"batch_size": 1.5}, "batch size '1.5'"), ({"device": "mps"}, "--device mps .* here, cpu")])
def test_flags_beside_them_are_read_too(flags, said):
    with pytest.raises(UserError, match=said):
        arguments.read({"folder": "x"}, **flags)
    assert arguments.read({"folder": "x"}, device="cpu") == arguments.read(
        {"folder": "x"}, device=arguments.UNSAID)


def test_two_numbers_of_requests_are_refused():
    with pytest.raises(UserError, match="slots=4 and the batch size 8"):
        arguments.read({"folder": "x", "slots": 4}, 8)


def test_layouts_that_do_not_exist_are_refused():
    with pytest.raises(UserError, match="data=0"):
        arguments.read({"folder": "x", "data": 0})


@pytest.mark.skipif(IS_THERE, reason="lm-eval is installed")
def test_a_harness_that_is_missing_is_named_with_the_remedy(capsys):
    assert command.main() == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "not installed; install it: pip install 'lm-eval>=0.4.13,<0.5'" in said


@pytest.mark.skipif(not IS_THERE, reason="lm-eval is not installed")
@pytest.mark.parametrize(("version", "is_right"), [
    ("0.4.12", False), ("0.4.13", True), ("0.4.13.dev1", True), ("0.4.20", True), ("0.5.0", False)])
def test_a_harness_of_another_version_is_refused(monkeypatch, version, is_right):
    from dsjax.evaluate.harness import installed

    monkeypatch.setattr(metadata, "version", lambda name: version)
    if is_right:
        installed.require()
        return
    with pytest.raises(UserError, match=f"{version} is installed, and this fits 0.4.13"):
        installed.require()
