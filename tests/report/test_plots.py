"""The pictures show what was recorded: every number drawn is the run's, and the title is true."""

import ast
import contextlib
from pathlib import Path

import numpy as np
import pytest

from dsjax.report import plots
from dsjax.report.metrics import MetricWriter


@pytest.fixture
def drawn(monkeypatch):
    """Keeps the figures that are drawn."""
    figures, original = [], plots._figure

    @contextlib.contextmanager
    def keep(*args):
        with original(*args) as figure:
            figures.append(figure)
            yield figure

    monkeypatch.setattr(plots, "_figure", keep)
    return figures


def _record(path, final=None, steps=60):
    writer = MetricWriter(path)
    for step in range(1, steps + 1):
        loss = None if step == 7 else 3 + 5 / step  # a skipped step
        values = {"loss": loss, "total_loss": 99.0, "learning_rate": 0.001 * step}
        writer.write(step, "train", values)
        if step % 20 == 0:
            writer.write(step, "eval", {"bits_per_byte": 2 + 1 / step, "heldout_tokens": 1600})
    if final is not None:
        writer.write(steps, "final", {"bits_per_byte": final, "heldout_tokens": 4321})
    writer.close()
    return path


def _texts(axes):
    return [text.get_text() for text in axes.texts]


def _legend(axes):
    return [text.get_text() for text in axes.get_legend().get_texts()]


def _legend_covers(figure, axes):
    figure.canvas.draw()
    return axes.get_legend().get_window_extent().overlaps(axes.get_window_extent())


def test_the_loss_curve_shows_the_recorded_loss_evaluations_baselines_and_rate(tmp_path, drawn):
    path = _record(tmp_path / "tiny" / "metrics.jsonl")
    title = plots.loss_curve(path, tmp_path / "a.png", baselines={"5-gram": 2.5, "unigram": 4.1})
    assert title == "tiny: 2.02 bits per byte held out, below the 5-gram (2.50)"
    loss, bits, rate = drawn[0].axes
    assert loss.get_title(loc="left") == title
    steps, values = loss.lines[0].get_data()
    assert len(steps) == 59
    assert 7 not in steps
    np.testing.assert_allclose(values, 3 + 5 / steps)
    np.testing.assert_allclose(
        bits.lines[0].get_data(), [[20, 40, 60], 2 + 1 / np.array([20, 40, 60])]
    )
    assert [line.get_ydata()[0] for line in bits.lines[2:]] == [2.5, 4.1]
    assert _texts(bits) == ["2.017", "5-gram 2.500", "unigram 4.100"]
    np.testing.assert_allclose(rate.lines[0].get_ydata()[-1], 0.06)
    assert (tmp_path / "a.png").read_bytes()[:4] == b"\x89PNG"


def test_the_title_states_the_measurement_on_all_held_out_text_when_there_is_one(tmp_path, drawn):
    path = _record(tmp_path / "metrics.jsonl", final=2.75)
    title = plots.loss_curve(path, tmp_path / "a.png", {"5-gram": 2.5}, name="small")
    assert title == "small: 2.75 bits per byte held out, above the 5-gram (2.50)"
    assert "2.750" in _texts(drawn[0].axes[1])


def test_both_held_out_marks_say_when_and_on_how_much_they_were_measured(tmp_path, drawn):
    path = _record(tmp_path / "metrics.jsonl", final=2.75)
    plots.loss_curve(path, tmp_path / "a.png", {"5-gram": 2.5, "unigram": 4.1})
    bits = drawn[0].axes[1]
    assert _legend(bits) == ["while training, on 1,600 tokens", "at the end, on 4,321 tokens"]
    assert not _legend_covers(drawn[0], bits)
    plots.loss_curve(_record(tmp_path / "unfinished.jsonl"), tmp_path / "a.png")
    assert _legend(drawn[1].axes[1]) == ["while training, on 1,600 tokens", "last"]


def test_panels_without_data_are_left_out_and_an_empty_file_is_refused(tmp_path, drawn):
    writer = MetricWriter(tmp_path / "m.jsonl")
    with pytest.raises(ValueError, match="nothing to draw"):
        plots.loss_curve(tmp_path / "m.jsonl", tmp_path / "a.png")
    writer.write(1, "train", {"loss": 5.0})
    writer.close()
    title = plots.loss_curve(tmp_path / "m.jsonl", tmp_path / "a.png", name="x")
    assert title == "x: training loss 5.00 nats after 1 step"
    assert len(drawn[0].axes) == 1


def _numbers(axes, figure):
    """Tick labels of the horizontal axis that are drawn."""
    figure.canvas.draw()
    low, high = axes.get_xlim()
    return [label.get_text() for label in axes.get_xticklabels()
            if low <= label.get_position()[0] <= high]


@pytest.mark.parametrize("steps", [
    1, 5, 60, 600, *(pytest.param(n, marks=pytest.mark.exhaustive) for n in (2, 20))])
def test_a_run_of_any_length_is_seen_and_its_steps_are_whole_numbers(tmp_path, drawn, steps):
    path = _record(tmp_path / "m.jsonl", final=2.5, steps=steps)
    plots.loss_curve(path, tmp_path / "a.png", {"5-gram": 2.51})
    loss, bits, rate = drawn[0].axes
    ticks = _numbers(rate, drawn[0])
    assert 2 <= len(ticks) <= 9
    assert all("." not in tick for tick in ticks)
    few = steps <= plots.FEW
    assert (loss.lines[0].get_marker() == "o") == few  # a single step is a dot, no empty panel
    assert ("smoothed" in _legend(loss)) != few
    assert not _legend_covers(drawn[0], bits)
    value = bits.texts[0].get_window_extent()
    assert not value.overlaps(bits.get_legend().get_window_extent())


def test_skipped_steps_are_marked_and_a_run_of_nothing_else_says_so(tmp_path, drawn):
    plots.loss_curve(_record(tmp_path / "m.jsonl"), tmp_path / "a.png")
    skipped = drawn[0].axes[0].lines[2]
    assert skipped.get_label() == "skipped"
    np.testing.assert_array_equal(skipped.get_xdata(), [7])
    writer = MetricWriter(tmp_path / "n.jsonl")
    for step in (1, 2):
        writer.write(step, "train", {"loss": float("nan"), "learning_rate": 0.0})
    writer.close()
    title = plots.loss_curve(tmp_path / "n.jsonl", tmp_path / "a.png", name="x")
    assert title == "x: no step had a finite loss"


def test_baselines_that_are_near_each_other_share_a_label(tmp_path, drawn):
    path = _record(tmp_path / "m.jsonl")
    plots.loss_curve(path, tmp_path / "a.png", {"a": 2.06, "b": 2.05, "c": 4.0, "d": 2.055})
    assert _texts(drawn[0].axes[1])[1:] == ["b 2.050, d 2.055, a 2.060", "c 4.000"]


def test_a_long_title_is_broken_and_covers_no_label(tmp_path, drawn):
    path = _record(tmp_path / "m.jsonl")
    plots.loss_curve(path, tmp_path / "a.png", name="a-long-name-" * 8)
    figure = drawn[0]
    figure.canvas.draw()
    title = figure.axes[0].title if figure.axes[0].get_title() else figure.axes[0]._left_title
    assert "\n" in title.get_text()
    assert title.get_window_extent().x1 <= figure.bbox.x1
    writer = MetricWriter(tmp_path / "evaluated.jsonl")
    writer.write(0, "eval", {"bits_per_byte": 8.0, "heldout_tokens": 1600})
    writer.close()
    plots.loss_curve(tmp_path / "evaluated.jsonl", tmp_path / "a.png", name="only-evaluated")
    bits = drawn[1].axes[0]
    drawn[1].canvas.draw()
    words = bits.get_legend().get_window_extent()
    assert not words.overlaps(bits._left_title.get_window_extent())


@pytest.mark.parametrize("experts", [1, 2, 3, 64])
def test_experts_are_counted_in_whole_numbers(tmp_path, drawn, experts):
    plots.expert_loads(np.ones((2, 2, experts)), tmp_path / "b.png", steps=[5, 6])
    for axes in drawn[0].axes[:2]:
        assert all("." not in tick for tick in _numbers(axes, drawn[0]))
    assert drawn[0].axes[1].lines[0].get_marker() == "o"


def test_loads_of_no_token_and_loads_that_are_no_numbers(tmp_path):
    title = plots.expert_loads(np.zeros((2, 8)), tmp_path / "b.png", "tiny")
    assert title == "tiny: no expert was chosen by any token"
    with pytest.raises(ValueError, match="not all numbers"):
        plots.expert_loads(np.array([[1, np.nan]]), tmp_path / "b.png")


def test_smoothing_keeps_lines_and_means_and_does_not_lag():
    line = np.linspace(5, 1, 400)
    inner = slice(20, -20)  # the bell reaches 16 steps
    np.testing.assert_allclose(plots.smooth(line)[inner], line[inner], atol=1e-12)
    noise = np.random.default_rng(0).normal(size=400)
    # A bell of width 4 averages about sqrt(4 pi) 4 = 14 values: the spread falls to a quarter.
    assert plots.smooth(noise).std() < 0.4
    np.testing.assert_array_equal(plots.smooth(np.array([3.0])), [3.0])


def test_the_load_map_is_relative_to_each_layers_mean_and_white_is_balanced(tmp_path, drawn):
    loads = np.array([[10, 10, 10, 10, 10], [0, 2, 2, 2, 4]])
    title = plots.expert_loads(loads, tmp_path / "b.png", "tiny", ["layer 1", "MTP"])
    assert title == "tiny: busiest expert 2.00x its layer's mean (MTP), 1 dead of 10"
    axes = drawn[0].axes[0]
    image = axes.images[0]
    np.testing.assert_allclose(image.get_array(), [[1, 1, 1, 1, 1], [0, 1, 1, 1, 2]])
    assert image.norm(1.0) == 0.5
    assert image.norm(0.0) == 0.0
    red, _, blue, _ = image.cmap(image.norm(2.0))
    assert red > blue  # more than its share is red
    np.testing.assert_array_equal(axes.collections[0].get_offsets(), [[0, 1]])  # the dead one
    assert _texts(axes) == ["MaxVio", "0.00", "1.00"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["layer 1", "MTP"]


def test_loads_over_time_show_the_last_and_the_course_of_maxvio(tmp_path, drawn):
    loads = np.array([[[4, 0, 2], [2, 2, 2]], [[3, 1, 2], [2, 1, 3]], [[2, 2, 2], [2, 2, 2]]])
    title = plots.expert_loads(loads, tmp_path / "c.png", steps=[5, 10, 15])
    assert title == "busiest expert 1.00x its layer's mean (layer 0), no dead of 6"
    course = drawn[0].axes[1]
    np.testing.assert_allclose(course.lines[0].get_data(), [[5, 10, 15], [1, 0.5, 0]])
    np.testing.assert_allclose(course.lines[1].get_ydata(), [0, 0.5, 0])
    assert _legend(course) == ["layer 0", "layer 1"]
    assert not _legend_covers(drawn[0], course)


def test_of_many_layers_the_first_middle_and_last_are_named(tmp_path, drawn):
    plots.expert_loads(np.arange(1, 109).reshape(2, 18, 3), tmp_path / "c.png")
    course = drawn[0].axes[1]
    assert _legend(course) == ["layer 0", "layer 9", "layer 17"]
    colors = [line.get_color() for line in (course.get_legend().get_lines()[1], course.lines[9])]
    np.testing.assert_array_equal(*colors)


def test_a_layer_without_any_token_is_drawn_and_wrong_shapes_are_refused(tmp_path, drawn):
    plots.expert_loads(np.array([[0, 0, 0], [1, 2, 3]]), tmp_path / "b.png")
    np.testing.assert_allclose(drawn[0].axes[0].images[0].get_array()[0], 0)
    with pytest.raises(ValueError, match=r"shape \(3,\)"):
        plots.expert_loads(np.ones(3), tmp_path / "b.png")


def test_matplotlib_is_not_imported_before_a_picture_is_drawn():
    top = ast.parse(Path(plots.__file__).read_text()).body  # type checkers' imports are deeper
    names = [ast.unparse(node) for node in top if isinstance(node, ast.Import | ast.ImportFrom)]
    assert len(names) > 3
    assert not any("matplotlib" in name for name in names)
