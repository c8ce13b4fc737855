"""A person sees every number a run reports, in 30 columns or 140, in a terminal or a log file."""

import io
import math
import time

import numpy as np
import pytest
from rich.console import Console

from dsjax.report.display import (
    ASCII_BARS,
    History,
    LiveDisplay,
    PlainDisplay,
    clock,
    header,
    open_display,
    shorten,
    sparkline,
)

VALUES = {
    "loss": 2.204, "bits_per_byte": 1.93, "tok_s": 8912.3, "mfu": 0.391, "learning_rate": 2.2e-3,
    "max_vio": 0.31, "dead_experts": 2, "mtp_loss": 3.4, "mtp_acceptance": 0.613, "skipped": 0,
    "eta": 41.0,
}  # fmt: skip
SHOWN = ["2.204", "1.930 bits/byte", "8,912 tok/s", "39.1%", "2.20e-03", "0.31", "3.400", "61.3%"]


def _terminal(width, **options):
    return Console(file=io.StringIO(), width=width, force_terminal=True, record=True, **options)


def _draw(width, values, steps=1):
    console = _terminal(width)
    live = LiveDisplay("tiny", 300, console)
    for step in range(1, steps + 1):
        live.update(step, values)
    console.print(live.render())
    return console.export_text()


@pytest.mark.parametrize("width", [30, 60, 80, 140])
def test_the_panel_shows_every_value_whole_and_fits_the_terminal(width):
    text = _draw(width, VALUES, steps=2)
    assert all(len(line) <= width for line in text.splitlines())
    for shown in SHOWN:
        assert shown in text
    assert "2/300" in text
    assert width < 60 or "0:41 left" in text


def test_what_is_not_reported_is_left_out_and_what_is_not_known_is_shown():
    text = _draw(60, {"loss": np.float32(2.5), "router_entropy": 3.14159})
    assert "router entropy" in text
    assert "3.142" in text
    assert "MTP" not in text
    assert "held out" not in text


def test_values_stay_on_the_panel_until_they_are_reported_again():
    console = _terminal(80)
    live = LiveDisplay("tiny", 300, console)
    live.update(1, {"loss": 5.0, "bits_per_byte": 2.5})
    live.update(2, {"loss": 4.0})
    console.print(live.render())
    text = console.export_text()
    assert "2.500 bits/byte" in text
    assert "4.000" in text


def test_a_loss_that_is_not_a_number_is_shown_and_does_not_break_the_curve():
    console = _terminal(80)
    live = LiveDisplay("tiny", 300, console)
    for loss in (5.0, 4.0, math.nan):
        live.update(1, {"loss": loss})
    console.print(live.render())
    assert "nan" in console.export_text()
    assert live._losses.points == [5.0, 4.0]


def test_a_live_run_redraws_in_place_and_keeps_notes_above():
    console = _terminal(60)
    with LiveDisplay("tiny", 3, console, redraw_s=0) as live:
        live.update(1, VALUES)
        live.note("saved step 1")
        live.update(3, VALUES)
    output = console.file.getvalue()
    assert "\x1b[1A" in output  # the cursor went up to draw over the last panel
    assert output.index("saved step 1") < output.index("3/3")


@pytest.mark.parametrize("width", [30, 60, 140])
def test_what_takes_long_is_shown_with_its_time_and_moves(width, monkeypatch):
    console = _terminal(width)
    now = [100.0]
    monkeypatch.setattr("dsjax.report.display.time.monotonic", lambda: now[0])
    live = LiveDisplay("tiny", 300, console)
    live.doing("compiling the step")
    drawn = []
    for _ in range(2):
        console.print(live.render())
        drawn.append(console.export_text())
        now[0] += 65.2
    assert all(len(line) <= width for text in drawn for line in text.splitlines())
    assert "compiling the step 0:00" in drawn[0]
    assert "compiling the step 1:05" in drawn[1]
    turns = [next(line for line in text.splitlines() if "compiling" in line)[2] for text in drawn]
    assert turns[0] != turns[1]
    live.doing("")
    console.print(live.render())
    assert "compiling" not in console.export_text()


def test_the_panel_is_drawn_again_while_nothing_is_reported():
    console = _terminal(60)
    with LiveDisplay("tiny", 3, console) as live:
        live.doing("compiling the step")
        before, began = len(console.file.getvalue()), time.monotonic()
        while len(console.file.getvalue()) <= before and time.monotonic() - began < 10:
            time.sleep(0.05)
        assert len(console.file.getvalue()) > before
    assert "compiling" not in console.export_text().rpartition("tiny")[2]


def test_without_a_terminal_what_takes_long_has_one_line():
    file = io.StringIO()
    display = open_display("tiny", 7, console=Console(file=file))
    for what in ("compiling the step", "", "evaluating", "", "compiling the step", ""):
        display.doing(what)
    assert file.getvalue() == "compiling the step ...\nevaluating ...\n"


def test_without_a_terminal_lines_are_plain_and_come_every_n_steps():
    file = io.StringIO()
    with open_display("tiny", 7, plain_every=3, console=Console(file=file, width=40)) as display:
        assert isinstance(display, PlainDisplay)
        for step in range(1, 8):
            display.update(step, VALUES if step == 5 else {"loss": 10.0 - step})
        display.note("done")
    lines = file.getvalue().splitlines()
    assert [line[:8] for line in lines] == ["step 3/7", "step 5/7", "step 6/7", "step 7/7", "done"]
    assert all("\x1b" not in line for line in lines)
    for shown in SHOWN:
        assert shown in lines[1]  # an evaluation always has its line
    assert "bits/byte" not in lines[2]  # and is not repeated as if new


def test_the_header_shows_every_choice_whole_in_a_narrow_terminal():
    console = _terminal(40)
    header(
        {"devices": "1 x cpu", "peak": "cpu: best 1024^3 float32 matmul, measured"}, "t", console
    )
    text = " ".join(console.export_text().split())
    assert text == "t devices 1 x cpu peak cpu: best 1024^3 float32 matmul, measured"


def test_a_sparkline_goes_from_its_highest_bar_to_its_lowest_and_keeps_the_mean_of_stretches():
    assert sparkline([6.0, 5, 4, 3, 2, 1], 6, ASCII_BARS) == "#*=-._"
    assert sparkline([1.0, 1.0], 6, ASCII_BARS) == "__"
    assert shorten([1.0, 3, 5, 7, 9, 11], 3) == [2, 6, 10]


def test_a_history_of_any_length_keeps_few_points_that_cover_it_evenly():
    history = History(size=8)
    for i in range(1000):
        history.add(i)
    gaps = np.diff(history.points)
    assert 4 <= len(history.points) < 8
    assert (gaps == gaps[0]).all()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0:00"), (59.6, "1:00"), (725, "12:05"), (11232, "3:07:12"), (183600, "2d 03:00"),
     (math.nan, "?"), (None, "?")],
)  # fmt: skip
def test_durations_read_as_clocks(seconds, text):
    assert clock(seconds) == text
