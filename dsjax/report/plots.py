"""A run's pictures: how its loss fell, how evenly its experts were used, what EPLB would mend.

All are drawn from what the run recorded and from nothing else, so they can be made again at any
time. A title states the finding. Loads are shown as in the DeepSeek-V3 report, sec. 4.5.3: relative
to the mean of their layer, 1 = balanced. Axes: L layers, E experts, S recorded steps.

matplotlib is imported when a picture is drawn, not before: it takes longer to load than dsjax.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dsjax.report.metrics import dead_experts, max_violation, read_metrics

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Series = tuple[np.ndarray, np.ndarray]  # steps and values, [S] each

INK, BLUE, RUST, GRAY = "#1b1f24", "#0f6fb5", "#b5420f", "#8a929c"
STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "text.color": INK,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelcolor": INK,
    "axes.edgecolor": GRAY,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e3e6ea",
    "grid.linewidth": 0.7,
    "xtick.color": GRAY,
    "ytick.color": GRAY,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
}
FEW = 40
"""Points up to which each has a dot and a curve is not smoothed."""


def loss_curve(metrics: str | Path, png: str | Path,
               baselines: Mapping[str, float] | None = None, name: str | None = None) -> str:
    """Draw a metrics JSONL: training loss, held-out bits a byte, learning rate; return the title.

    baselines: bits a byte of other models on the same held-out text, drawn as dashed lines.
    name: of the run; the file's folder when None. A "final" event measured all the held-out text:
    the title states it rather than the last "eval". Panels without data are left out.
    """
    name = name or Path(metrics).resolve().parent.name
    train, baselines = read_metrics(metrics, "train"), baselines or {}
    loss, rate = _series(train, "loss"), _series(train, "learning_rate")
    evals, finals = (read_metrics(metrics, kind) for kind in ("eval", "final"))
    bits, final = _series(evals, "bits_per_byte"), _series(finals, "bits_per_byte")
    reached = final if len(final[0]) else bits
    marks = _tokens("while training", evals), _tokens("at the end" if finals else "last", finals)
    skipped = np.array([e["step"] for e in train if e["step"] not in set(loss[0])], np.float64)
    panels = [
        (3.0, loss, lambda axes: _draw_loss(axes, *loss, skipped)),
        (2.2, reached, lambda axes: _draw_bits(axes, bits, reached, marks, baselines)),
        (0.9, rate, lambda axes: _draw_rate(axes, *rate)),
    ]
    panels = [panel for panel in panels if len(panel[1][0])]
    if not panels:
        raise ValueError(f"{metrics} holds no training or evaluation events; nothing to draw")
    title = _loss_title(name, loss, reached, baselines, len(skipped))
    heights = [height for height, _, _ in panels]
    with _figure(png, 7.5, 1.2 + 1.05 * sum(heights)) as figure:
        grid = figure.subplots(len(panels), squeeze=False, sharex=True, height_ratios=heights)
        for axes, (_, _, draw) in zip(grid[:, 0], panels):
            draw(axes)
        has_row = len(loss[0]) == 0 and len(reached[0]) > 0  # of labels, above the first panel
        grid[0, 0].set_title(_wrapped(title, 7.5), pad=20 if has_row else 6)
        grid[-1, 0].set_xlabel("optimizer step")
        _whole_steps(grid[-1, 0])
        figure.align_ylabels()
    return title


def expert_loads(loads: np.ndarray, png: str | Path, name: str = "",
                 labels: Sequence[str] | None = None, steps: Sequence[int] | None = None) -> str:
    """Draw the last loads as a heat map by layer, with each layer's MaxVio; return the title.

    loads: counts or shares [L, E], or [S, L, E] over recorded `steps`: then the history of MaxVio
    is drawn below. labels: a name a layer; "layer i" when None.
    """
    over_time = np.asarray(loads, np.float64)
    over_time = over_time[None] if over_time.ndim == 2 else over_time
    if over_time.ndim != 3 or 0 in over_time.shape:
        raise ValueError(f"loads have the shape {np.shape(loads)}; give [L, E] or [S, L, E]")
    if not np.isfinite(over_time).all():
        raise ValueError("loads are not all numbers; give counts or shares of tokens")
    last = over_time[-1]
    labels = labels or [f"layer {i}" for i in range(len(last))]
    title = _loads_title(name, last, labels)
    has_history = len(over_time) > 1
    map_height = float(np.clip(0.24 * len(last), 0.9, 10))
    with _figure(png, 7.5, 1.1 + map_height + (2.2 if has_history else 0)) as figure:
        ratios = [map_height, 1.8] if has_history else [1]
        grid = figure.subplots(len(ratios), squeeze=False, height_ratios=ratios)
        _draw_loads(figure, grid[0, 0], last, labels)
        grid[0, 0].set_title(_wrapped(title, 7.5))
        if has_history:
            history = np.array([max_violation(one) for one in over_time])
            _draw_violation(grid[1, 0], history, labels, steps)
    return title


def placements(
    before: tuple[np.ndarray, np.ndarray], after: tuple[np.ndarray, np.ndarray], png: str | Path,
    name: str = "", labels: Sequence[str] | None = None,
) -> str:
    """Draw loads before and after experts were copied and moved; return the title.

    before: of experts [L, E] and of the devices [L, P] that hold them in order; after: of slots
    [L, R] and of devices [L, P]. All four are on one scale, relative to their layer's mean.
    """
    rows = len(before[0])
    labels = labels or [f"layer {i}" for i in range(rows)]
    worst = [float((1 + max_violation(devices)).max()) for _, devices in (before, after)]
    title = (f"{name}: " if name else "") + (
        f"busiest device {worst[0]:.2f}x its layer's mean, {worst[1]:.2f}x after EPLB")
    top = max(float((1 + max_violation(part)).max()) for part in (*before, *after))
    height = float(np.clip(0.24 * rows, 0.9, 10))
    with _figure(png, 9, 1.7 + 2 * height) as figure:
        grid = figure.subplots(2, 2, squeeze=False, width_ratios=[3, 1])
        for row, pair, words in zip(grid, (before, after), ("before", "after")):
            for axes, part, what in zip(row, pair, ("expert", "device")):
                image = _draw_relative(axes, part, labels, top)
                slot = "slot" if words == "after" and what == "expert" else what
                axes.set_xlabel(f"{slot}, {words}")
            row[1].set_yticks([])
        figure.colorbar(image, ax=grid, label="load / layer mean", fraction=0.03, aspect=24)
        figure.suptitle(_wrapped(title, 9), x=0.01, ha="left", fontsize=11, fontweight="bold")
    return title


@contextmanager
def _figure(png: str | Path, width: float, height: float) -> Iterator[Figure]:
    """Figure in the house style, saved on leaving; no window system and no global state."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(figure)
        yield figure
        Path(png).parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(png, dpi=150)


def _series(events: list[dict[str, Any]], key: str) -> Series:
    """Steps and values of the events that have a number under `key`."""
    pairs = [(e["step"], e[key]) for e in events if isinstance(e.get(key), int | float)]
    steps, values = np.array(pairs, np.float64).reshape(-1, 2).T
    return steps, values


def smooth(values: np.ndarray, share: float = 0.01) -> np.ndarray:
    """Weighted mean around each value; the bell is a `share` of the series wide. [S] -> [S]."""
    width = max(share * len(values), 0.5)
    reach = min(int(4 * width), (len(values) - 1) // 2)
    bell = np.exp(-0.5 * (np.arange(-reach, reach + 1) / width) ** 2)
    weight = np.convolve(np.ones(len(values)), bell, "same")
    return np.convolve(values, bell, "same") / weight


def _loss_title(name: str, loss: Series, bits: Series, baselines: Mapping[str, float],
                skipped: int) -> str:
    """State what the run reached, beside the baseline that is nearest to it."""
    if not len(bits[0]):
        if not len(loss[0]):
            return f"{name}: no step had a finite loss" if skipped else name
        return f"{name}: training loss {smooth(loss[1])[-1]:.2f} nats {_after(loss[0][-1])}"
    reached = bits[1][-1]
    said = f"{name}: {reached:.2f} bits per byte held out"
    if not baselines:
        return f"{said} {_after(bits[0][-1])}"
    label, value = min(baselines.items(), key=lambda item: abs(item[1] - reached))
    return f"{said}, {'below' if reached < value else 'above'} the {label} ({value:.2f})"


def _after(step: float) -> str:
    return f"after {step:.0f} step{'' if step == 1 else 's'}"


def _wrapped(title: str, width: float) -> str:
    """A title in as many lines as a figure of so many inches needs."""
    return "\n".join(textwrap.wrap(title, int(9.4 * width)))


def _whole_steps(axes: Axes) -> None:
    """Ticks at whole numbers of the horizontal axis, which is widened around a single one."""
    from matplotlib.ticker import MaxNLocator

    low, high = axes.get_xlim()
    if high - low < 1:
        axes.set_xlim((low + high) / 2 - 1, (low + high) / 2 + 1)
    axes.xaxis.set_major_locator(
        MaxNLocator(nbins=8, steps=[1, 2, 5, 10], integer=True, min_n_ticks=1))


def _draw_loss(axes: Axes, steps: np.ndarray, values: np.ndarray,
               skipped: np.ndarray) -> None:
    """Each step's loss, smoothed where there are many; skipped steps stand on the lower edge."""
    if len(steps) <= FEW:
        axes.plot(steps, values, color=BLUE, linewidth=1.2, marker="o", markersize=3,
                  label="each step")
    else:
        axes.plot(steps, values, color=BLUE, alpha=0.3, linewidth=0.7, label="each step")
        axes.plot(steps, smooth(values), color=BLUE, linewidth=1.6, label="smoothed")
    if len(skipped):
        axes.plot(skipped, np.full(len(skipped), 0.03), transform=axes.get_xaxis_transform(),
                  color=RUST, marker="|", markersize=7, linestyle="", label="skipped")
    axes.set_ylabel("training loss, next token\nnats a token")
    axes.legend(frameon=False, loc="upper right")


def _tokens(when: str, events: list[dict[str, Any]]) -> str:
    """Label a mark: when it was measured, and on how many held-out tokens."""
    count = events[-1].get("heldout_tokens") if events else None
    return f"{when}, on {count:,} tokens" if isinstance(count, int) else when


def _draw_bits(axes: Axes, bits: Series, reached: Series, marks: tuple[str, str],
               baselines: Mapping[str, float]) -> None:
    axes.plot(*bits, color=INK, linewidth=1.4, marker="o", markersize=3.5,
              label=marks[0] if len(bits[0]) else None)
    step, value = reached[0][-1], reached[1][-1]
    axes.plot(step, value, color=BLUE, marker="D", markersize=5.5, linestyle="", label=marks[1])
    for other in baselines.values():
        axes.axhline(other, color=RUST, linewidth=1.1, linestyle=(0, (5, 3)))
    axes.margins(y=0.2)
    _legend_above(axes)
    axes.annotate(f"{value:.3f}", (step, value), xytext=(-7, 0), textcoords="offset points",
                  ha="right", va="center", fontweight="bold", color=BLUE,
                  bbox={"boxstyle": "square,pad=0.1", "fc": "white", "ec": "none"})  # fmt: skip
    for at, words in _beside(baselines, axes.get_ylim()):
        axes.annotate(words, (0.01, at), xytext=(0, 3), color=RUST,
                      xycoords=("axes fraction", "data"), textcoords="offset points")  # fmt: skip
    axes.set_ylabel("held out\nbits per byte")


def _beside(lines: Mapping[str, float], limits: tuple[float, float]) -> list[tuple[float, str]]:
    """Heights and words of labels; lines that are too near for labels of their own share one."""
    near = 0.11 * (limits[1] - limits[0])
    made: list[tuple[float, float, str]] = []
    for label, value in sorted(lines.items(), key=lambda item: item[1]):
        words = f"{label} {value:.3f}"
        if made and value - made[-1][1] < near:
            at, _, before = made.pop()
            made.append((at, value, f"{before}, {words}"))
        else:
            made.append((value, value, words))
    return [(at, words) for at, _, words in made]


def _draw_rate(axes: Axes, steps: np.ndarray, values: np.ndarray) -> None:
    axes.fill_between(steps, values, color=GRAY, alpha=0.25, linewidth=0)
    axes.plot(steps, values, color=GRAY, linewidth=1, marker="o" if len(steps) == 1 else None)
    axes.set_ylim(0, 1.1 * values.max() or 1)
    axes.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
    axes.set_ylabel("learning\nrate")


def _loads_title(name: str, loads: np.ndarray, labels: Sequence[str]) -> str:
    """State the worst overload and the experts that nothing chose."""
    violation = max_violation(loads)
    worst = int(violation.argmax())
    dead = dead_experts(loads)
    start = f"{name}: " if name else ""
    if dead == loads.size:
        return f"{start}no expert was chosen by any token"
    return (
        f"{start}busiest expert {1 + violation[worst]:.2f}x its layer's mean ({labels[worst]}), "
        f"{dead or 'no'} dead of {loads.size}"
    )


def _draw_relative(axes: Axes, loads: np.ndarray, labels: Sequence[str], top: float) -> Any:
    """Loads relative to their layer's mean, on colors from 0 to `top` with white at 1."""
    from matplotlib.colors import TwoSlopeNorm

    mean = loads.mean(-1, keepdims=True)
    relative = np.divide(loads, mean, out=np.zeros_like(loads), where=mean > 0)
    image = axes.imshow(relative, cmap="RdBu_r", norm=TwoSlopeNorm(1, vmin=0, vmax=max(2.0, top)),
                        aspect="auto", interpolation="nearest")
    _whole_steps(axes)
    axes.set_yticks(range(len(labels)), labels, fontsize=float(np.clip(330 / len(labels), 5, 9)))
    axes.grid(False)
    return image


def _draw_loads(figure: Figure, axes: Axes, loads: np.ndarray, labels: Sequence[str]) -> None:
    image = _draw_relative(axes, loads, labels, float((1 + max_violation(loads)).max()))
    layers, experts = np.nonzero(loads == 0)
    axes.scatter(experts, layers, marker="x", color="white", s=14, linewidths=1)
    size = float(np.clip(330 / len(labels), 5, 9))
    axes.set_xlabel("expert" + ("   (x: chosen by no token)" if len(layers) else ""))
    axes.annotate("MaxVio", (1.01, 0), xytext=(0, -4), xycoords="axes fraction", va="top",
                  textcoords="offset points", fontsize=8, color=GRAY)  # fmt: skip
    for layer, value in enumerate(max_violation(loads)):
        axes.text(1.01, layer, f"{value:.2f}", transform=axes.get_yaxis_transform(), va="center",
                  fontsize=size)  # fmt: skip
    figure.colorbar(image, ax=axes, label="load / layer mean", fraction=0.03, pad=0.08, aspect=14)


def _draw_violation(axes: Axes, history: np.ndarray, labels: Sequence[str],
                    steps: Sequence[int] | None) -> None:
    """MaxVio of every layer over the recorded steps, history [S, L]."""
    import matplotlib

    x = np.arange(len(history)) if steps is None else np.asarray(steps)
    colors = matplotlib.colormaps["viridis"](np.linspace(0, 0.9, history.shape[1]))
    for values, color, label in zip(history.T, colors, labels):
        axes.plot(x, values, color=color, linewidth=1.1, label=label,
                  marker="o" if len(x) <= FEW else None, markersize=3)
    axes.set_ylim(bottom=0)
    axes.set_ylabel("MaxVio")
    axes.set_xlabel("optimizer step" if steps is not None else "record")
    _whole_steps(axes)
    shown = range(len(labels)) if len(labels) <= 6 else (0, len(labels) // 2, len(labels) - 1)
    _legend_above(axes, [axes.lines[i] for i in shown])


def _legend_above(axes: Axes, lines: Sequence[Any] | None = None) -> None:
    """One row of labels over the right end of the panel, where it covers nothing."""
    lines = axes.get_legend_handles_labels()[0] if lines is None else lines
    axes.legend(handles=lines, frameon=False, ncols=len(lines), fontsize=8, borderpad=0,
                borderaxespad=0.3, handlelength=1.6, loc="lower right", bbox_to_anchor=(1, 1))
