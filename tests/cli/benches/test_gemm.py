"""The product benchmark compares forms of one product, each round by itself."""

import json

import pytest

from dsjax.cli.benches import gemm
from dsjax.cli.main import main


def test_rates_are_medians_and_ratios_are_taken_within_a_round():
    found = gemm.rates(6e12, taken=[1.0, 2.0, 4.0], beside=[3.0, 2.0, 2.0])
    assert found == {"ms": 2000.0, "tflop_s": 3.0, "to_bfloat16": 1.0, "least": 0.5, "most": 3.0}


def test_a_line_says_what_was_multiplied_and_that_the_emulated_product_is_exact(capsys):
    words = ["--json", "--m", "5", "--k", "300", "--n", "7", "--rounds", "2", "--calls", "1"]
    assert main(["bench", "gemm", *words]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["m"], found["k"], found["n"], found["rounds"]) == (5, 300, 7, 2)
    assert set(found["forms"]) == {"bfloat16", "FP8 (values)"}
    assert found["forms"]["bfloat16"]["to_bfloat16"] == 1.0
    assert found["difference"] == 0.0


def test_the_help_names_what_is_compared(capsys):
    assert main(["bench", "gemm", "--help"]) == 0
    assert "bfloat16" in capsys.readouterr().out


@pytest.mark.parametrize(("words", "answer"), [
    (["--n", "0"], "--n 0 must be at least 1"),
    (["--round", "5"], "no flag --round, did you mean --rounds"),
    (["--k"], "--k needs a value"),
])
def test_other_words_are_refused(words, answer, capsys):
    assert main(["bench", "gemm", *words]) == 2
    assert answer in capsys.readouterr().err
