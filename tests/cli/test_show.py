"""`dsjax show` prints a model's sizes exactly, as a table that cuts no number and as JSON."""

import json

import pytest

from dsjax.cli.main import main


def test_json_has_the_keys_others_build_on(capsys):
    assert main(["show", "deepseek_v3", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["params_total"] == 671_026_419_200
    assert found["params_mtp"] == 11_610_068_224
    assert found["params_active"] == 37_552_297_472
    assert found["kv_bytes_per_token"] == 70_272
    assert found["flops_per_token"] == pytest.approx(250.46e9, rel=1e-4)
    assert sum(p["params"] for p in found["parts"]) == found["params_total"]


@pytest.mark.parametrize("name", ["deepseek_v3", "kimi_k2"])
def test_the_table_cuts_no_number_at_eighty_columns(name, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["show", name]) == 0
    table = capsys.readouterr().out
    assert "\u2026" not in table
    main(["show", name, "--json"])
    for part in json.loads(capsys.readouterr().out)["parts"]:
        assert f"{part['params']:,}" in table


def test_fields_are_overridden_and_checked(capsys):
    assert main(["show", "tiny", "--model.layers", "6", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["params_total"] > 8_223_792
    assert main(["show", "tiny", "--model.moe.experts", "15"]) == 2
    said = capsys.readouterr().err
    assert "--model.moe.experts 15 is not divisible by --model.moe.groups 4" in said


@pytest.mark.parametrize("columns", ["20", "80", "300"])
def test_numbers_are_shown_whole_at_any_width(columns, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", columns)
    assert main(["show", "tiny", "--seq-len", "100000000000000"]) == 0
    said = capsys.readouterr().out
    assert "128,000,000,000,000,000" in said
    assert "activations with remat v3, at least" in said
    assert "\u2026" not in said


def test_length_is_a_number(capsys):
    assert main(["show", "tiny", "--seq-len", "many"]) == 2
    assert "many" in capsys.readouterr().err
