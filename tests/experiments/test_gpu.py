"""The call for a GPU runs its checks on a CPU at small sizes, and goes on after a failed part."""

import pytest

from experiments.gpu import card
from experiments.gpu.blocks import Row

QUICK = ("ceilings", "attention", "experts", "fp8", "start")


@pytest.mark.parametrize("names", [
    QUICK, pytest.param(tuple(card.PARTS), marks=pytest.mark.exhaustive)],  # compiles whole steps
    ids=["pieces", "all"])
def test_every_check_holds_on_a_cpu(names):
    rows = list(card.run(True, {name: card.PARTS[name] for name in names}))
    assert {row.part for row in rows} == set(names)
    assert [row for row in rows if row.holds is False] == []
    checks = [row for row in rows if row.holds]
    assert {row.part for row in checks} == set(names) - {"start"}
    assert all(len(row.cells) == len(card.COLUMNS) for row in rows)


def test_a_part_that_fails_is_a_row_and_the_next_one_runs(capsys):
    def fails(is_small):
        yield Row("a", "before", 1.0, "s")
        raise RuntimeError("no room")

    def runs(is_small):
        yield Row("b", "after", 2.0, "s")

    rows = list(card.run(True, {"a": fails, "b": runs}))
    assert [(row.part, row.form, row.holds) for row in rows] == [
        ("a", "before", None), ("a", "failed", False), ("b", "after", None)]
    assert "no room" in rows[1].value
    assert len(capsys.readouterr().out.splitlines()) == 3
    late = list(card.run(True, {"b": runs}, budget_s=-1.0))
    assert late[0].form == "not begun"


@pytest.mark.parametrize(("value", "holds"), [(0.5, True), (2.0, False), (float("nan"), False)])
def test_a_number_that_is_none_does_not_hold(value, holds):
    assert card.blocks.at_most("p", "f", value, "s", 1.0).holds is holds
