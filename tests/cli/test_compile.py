"""`dsjax compile` refuses in a sentence what it cannot compile, and says what it is for."""

import pytest

from dsjax.cli.main import main
from dsjax.plan import target


@pytest.mark.parametrize(("argv", "said"), [
    (["tiny"], "give --on"),
    (["tiny", "--on"], "--on needs a value"),
    (["tiny", "--on", "abacus:2x2"], "is no machine"),
    (["tiny", "--on", "v5p:2x2x1", "--model.layerz", "3"], "there is no flag --model.layerz"),
    (["--on", "v5p:2x2x1"], "CONFIG"),
])
def test_bad_input_is_refused_in_a_sentence(argv, said, capsys):
    assert main(["compile", *argv]) == 2
    error = capsys.readouterr().err
    assert error.startswith("dsjax: ")
    assert said in error
    assert error.count("\n") == 1


def test_a_compiler_that_is_not_installed_is_named_with_its_command(monkeypatch, capsys):
    monkeypatch.setattr(target, "is_installed", lambda module: False)
    assert main(["compile", "tiny", "--on", "v5p:2x2x1", "--parallel.expert", "4"]) == 2
    assert "pip install 'dsjax[tpu-aot]'" in capsys.readouterr().err


def test_help_says_how_to_name_a_machine(capsys):
    assert main(["compile", "--help"]) == 0
    assert "h200:256x8" in capsys.readouterr().out
