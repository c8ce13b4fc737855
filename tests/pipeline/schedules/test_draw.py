"""Pictures and `dsjax pipeline` show the schedule itself: every operation, once, where it runs."""

import json
import xml.etree.ElementTree as ElementTree
from collections import Counter

import pytest

from dsjax.cli.pipeline import Pipeline, main
from dsjax.errors import UserError
from dsjax.pipeline.schedules import draw
from dsjax.pipeline.schedules.build import NAMES, build, lockstep
from dsjax.pipeline.schedules.simulate import Times, simulate


@pytest.mark.parametrize("name", NAMES)
def test_the_grid_names_every_operation_once(name):
    schedule = build(name, 4, 8)
    text = draw.grid(lockstep(schedule), width=60)
    assert all(len(line) <= 60 for line in text.splitlines())
    drawn = Counter(
        word
        for line in text.splitlines()
        if line.startswith("rank 2")
        for word in line.removeprefix("rank 2").split()
        if word != "."
    )
    assert drawn == Counter(draw.label(op) for cell in schedule.table[2] for op in cell)


@pytest.mark.parametrize("name", NAMES)
def test_svg_areas_are_the_work(name):
    timeline = simulate(build(name, 4, 8), Times(1, 1.5, 0.5, 2.5))
    root = ElementTree.fromstring(draw.svg(timeline))
    boxes = [e for e in root.iter("{http://www.w3.org/2000/svg}rect") if e.get("stroke")]
    area = sum(float(box.get("width")) * float(box.get("height")) for box in boxes)
    scale, bands = draw._scale(timeline)
    assert timeline.makespan * scale == pytest.approx(bands * (draw.WIDTH - draw.MARGIN - 8))
    scale *= draw.ROW - 2
    # widths are printed to 0.01 pixel, so each box is off by at most 0.005 x its height
    assert abs(area - sum(timeline.busy) * scale) <= len(boxes) * 0.005 * draw.ROW
    assert len(boxes) == sum(len(cell) for row in timeline.schedule.table for cell in row)


@pytest.mark.parametrize("name", NAMES)
def test_a_drawing_is_wide_enough_for_every_number(name):
    schedule = build(name, 8, 24)
    times = Times(2, 2, 1.5, 4.5)
    root = ElementTree.fromstring(draw.svg(simulate(schedule, times)))
    assert int(root.get("width")) == draw.WIDTH  # a page shows it as it is: letters keep their size
    assert int(root.get("font-size")) >= 10
    words = [e.text for e in root.iter("{http://www.w3.org/2000/svg}text")]
    operations = [op for row in schedule.table for cell in row for op in cell]
    assert Counter(w for w in words if w.isdecimal()) == Counter(
        str(op.microbatch) for op in operations)


@pytest.mark.parametrize("name", NAMES)
def test_bands_show_every_moment_once(name):
    root = ElementTree.fromstring(draw.svg(simulate(build(name, 8, 24), Times(2, 2, 1.5, 4.5))))
    (window,) = root.iter("{http://www.w3.org/2000/svg}clipPath")
    room = int(window[0].get("width"))
    shown = list(root.iter("{http://www.w3.org/2000/svg}use"))
    assert [int(e.get("x")) for e in shown] == [-room * band for band in range(len(shown))]
    idle = [e for e in root.iter("{http://www.w3.org/2000/svg}rect") if e.get("fill") == "#f3f3f3"]
    assert float(idle[0].get("width")) == pytest.approx(room * len(shown), abs=0.01)


def test_the_terminal_shows_idle_time_as_blank():
    timeline = simulate(build("1f1b", 2, 2))
    lines = draw.terminal(timeline, width=len("rank 0 ") + 18).plain.splitlines()
    assert lines == ["rank 0 F0F1    BW0   BW1 ", "rank 1   F0BW0 F1BW1     "]


def test_json_has_the_table_and_the_numbers(capsys):
    assert main(Pipeline("dualpipe", 8, 20, json=True)) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["makespan"], shown["bubble"]) == (66, 6)
    assert (shown["peak_activations"], shown["weight_copies"]) == (9, 2)
    assert shown["step_counts_by_rank"]["0"] == [6, 1, 3, 3, 3, 1, 3, 1]
    forms = shown["lockstep"]
    assert {len(row) for row in shown["table"]} == {forms["branched"]["slots"]}
    assert forms["shortest"] == "branched"
    assert {*forms} == {"branched", "branched, backwards cut", "shortest"}
    operations = [op for row in shown["table"] for cell in row if cell for op in cell]
    keys = {(op["kind"], op["stage"], op["microbatch"]) for op in operations}
    assert len(keys) == len(operations) == shown["proof"]["operations"]


@pytest.mark.parametrize("name", NAMES)
def test_the_command_prints_each_schedule_and_draws_it(name, capsys, tmp_path):
    image = tmp_path / "timeline.svg"
    assert main(Pipeline(name, 4, 8, svg=image)) == 0
    out = capsys.readouterr().out
    assert "rank 3" in out
    assert "makespan" in out
    assert ("steps 1 to 8" in out) == name.startswith("dualpipe")
    assert image.read_text().startswith("<svg")


def test_bad_input_is_the_users(tmp_path):
    with pytest.raises(UserError, match="choose ranks 2 or 4"):
        main(Pipeline("dualpipe", 3, 20))
    with pytest.raises(UserError, match="10,000,000,000 cells; choose fewer, at most 2,000,000"):
        main(Pipeline("1f1b", 100_000, 100_000))
    with pytest.raises(UserError, match="cannot write"):
        main(Pipeline("1f1b", 2, 2, svg=tmp_path / "no" / "such.svg"))
