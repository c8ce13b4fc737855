"""Published runs: most fitted nothing and are predicted; V3's own layout is found by search."""

import json

import pytest

from dsjax.cli.main import main
from dsjax.config.load import load
from dsjax.config.run import with_fields
from dsjax.plan.cost import bill, search, site
from dsjax.plan.cost.efficiency import STACKS
from dsjax.plan.evidence import calibration, published


@pytest.fixture(scope="module")
def rows():
    return calibration.rows()


def test_each_stack_fitted_one_run_and_the_others_are_within_ten_percent_at_the_median(rows):
    fitted = [row for row in rows if row.is_fitted]
    assert len(fitted) == len(STACKS)
    assert all(abs(row.error) < 0.005 for row in fitted)
    assert len(rows) - len(fitted) >= len(rows) / 3
    assert calibration.median_error(rows) <= 0.10
    assert calibration.worst(rows).error == min(row.error for row in rows)


def test_every_run_has_a_source_and_says_what_was_assumed(rows):
    assert len({row.published.name for row in rows}) == len(rows)
    for row in rows:
        assert row.published.source
        assert row.published.assumed
        one = row.published
        assert one.run().parallel.devices == site.parse(one.site).devices


def test_the_layout_that_v3_chose_is_among_the_first_three_for_2048_h800():
    run = with_fields(load("deepseek_v3"),
                      train={"batch_size_start": None, "batch_size_ramp_steps": 0})
    found = search.search(run, site.parse("h800:2048"), STACKS["deepseek"])
    first = [one.run.parallel for one in found.found[:3]]
    assert any((one.pipe, one.expert, one.data, one.schedule) == (16, 64, 2, "dualpipe")
               for one in first)
    steps = [one.estimate.step for one in found.found[:search.SIMULATED]]
    assert steps == sorted(steps)
    assert all(one.room.fits for one in found.found)
    assert all(reason for _, reason in found.rejected)


def test_v3_costs_what_its_report_says(capsys):
    flags = ["--parallel.pipe", "16", "--parallel.expert", "64", "--parallel.expert-nodes", "8",
             "--parallel.data", "2", "--parallel.schedule", "dualpipe", "--train.microbatches",
             "120", "--json"]
    assert main(["plan", "deepseek_v3", "--on", "h800:2048", *flags]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["run_tokens"] == pytest.approx(14.8e12, rel=1e-4)
    assert said["run_chip_hours"] == pytest.approx(2.664e6, rel=0.03)  # V3 report, Table 1
    assert said["run_dollars"] == pytest.approx(5.328e6, rel=0.03)
    assert said["mfu"] == pytest.approx(0.389, rel=0.06)
    assert said["fits"]


def test_published_rows_are_reached_by_flags_alone(capsys):
    """The command line says what the evidence's own configs do, number for number."""
    for one in (row for row in published.ROWS if row.name in BY_FLAGS):
        layout = one.layout
        words = ["plan", one.config, "--on", one.site, "--stack", one.stack, "--precision",
                 one.precision, "--train.batch-size", one.rows, "--train.microbatches",
                 one.microbatches, "--train.seq-len", 4096, "--machine.remat", one.remat,
                 "--optimizer.moments", one.moments]
        for name in ("pipe", "data", "fsdp", "expert"):
            words += [f"--parallel.{name}", getattr(layout, name)]
        words += ["--parallel.schedule", layout.schedule] if layout.pipe > 1 else []
        words += ["--chunks", one.chunks] if one.chunks else []
        for name, value in one.model.items():
            words += [f"--model.{name.replace('_', '-')}", value]
        assert main([*map(str, words), "--json"]) in (0, 1)
        said = json.loads(capsys.readouterr().out)
        assert said["tokens_per_s_per_chip"] == pytest.approx(
            calibration.tokens_per_chip(one), rel=1e-9)


BY_FLAGS = ("MaxText, 256 v7x, FP8", "Megatron-Bridge 26.08, 256 GB300",
            "SimuMax, 8 B200, V2 widths, 8 microbatches")


def test_tokens_of_a_ramp_are_its_rows_in_turn():
    run = with_fields(load("tiny"), train={
        "steps": 10, "batch_size": 8, "batch_size_start": 4, "batch_size_ramp_steps": 4,
        "batch_size_multiple": 4})
    assert bill.tokens_of(run) < 10 * 8 * run.train.seq_len
    flat = with_fields(run, train={"batch_size_start": None})
    assert bill.tokens_of(flat) == 10 * 8 * run.train.seq_len


@pytest.mark.parametrize(("words", "sentence"), [
    ("plan deepseek_v3 --on h80:8", "'h80' is no machine here, did you mean h800"),
    ("plan deepseek_v3 --on h800", "does not say how many"),
    ("plan deepseek_v3 --on h800:16 --parallel.pipe 4", "and the layout pipe 4"),
    ("plan deepseek_v3 --on h800:8", "no layout of deepseek_v3 fits h800:8"),
    ("plan deepseek_v3 --on h800:2048 --stack nccl", "there is no stack 'nccl'"),
    ("plan deepseek_v3 --on h800:2048 --search 0", "--search 0 is not a number"),
    ("plan tiny --on h100:8 --precision bf16 --dollars -1", "--dollars -1.0 is not a number"),
])
def test_what_cannot_be_planned_is_a_sentence(words, sentence, capsys):
    assert main(words.split()) == 2
    said = capsys.readouterr()
    assert sentence in said.err
    assert said.out == ""


def test_a_given_layout_that_does_not_fit_leaves_with_status_1(capsys):
    words = "plan deepseek_v3 --on h800:8 --parallel.expert 8 --train.batch-size 8"
    assert main(words.split()) == 1
    assert "does not fit" in capsys.readouterr().out


def test_the_calibration_is_printed_with_its_median_and_worst_row(capsys):
    assert main(["plan", "--calibration", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert {"run", "predicted", "published", "error", "fitted"} <= said["rows"][0].keys()
    assert main(["plan", "--calibration"]) == 0
    assert "the worst is" in capsys.readouterr().out
