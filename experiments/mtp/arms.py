"""Train with no, one and two modules that predict further tokens; main loss and acceptance."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dsjax.config.run import with_fields
from experiments.common import plot
from experiments.common.command import Asked
from experiments.common.small import answer, config, drawn, verdicts
from experiments.common.small.answer import Answer, Found, Verdicts, against, mean, said
from experiments.common.small.trials import Trial

MARGIN = 0.01
"""Nats that count as no cost."""
REPORTED = (0.85, 0.90)


def trials() -> list[Trial]:
    """Every arm; no module first."""
    run = config.config("mtp")
    one, two = (with_fields(run, model={"mtp_depth": depth}) for depth in (1, 2))
    flat = dataclasses.replace(one, loss=dataclasses.replace(one.loss, mtp_weight_late=0.3))
    return [Trial("none", "no module", run),
            Trial("one", "one module, weight 0.3 then 0.1", one),
            Trial("two", "two modules, weight 0.3 then 0.1", two),
            Trial("flat", "one module, weight 0.3 throughout", flat)]


COLUMNS = ("arm", "modules", "held-out nats", "against none", "second token, nats",
           "second token accepted", "third accepted", "FLOPs a token", "CPU seconds")


def accepted(made: dict[str, Any], depth: int) -> float | None:
    """Share of drafts of a depth that the main model would have chosen; None without such."""
    found = [one["acceptance"][depth] for one in made["of_seeds"]
             if len(one.get("acceptance", [])) > depth]
    return sum(found) / len(found) if found else None


def table(found: Found) -> tuple[Sequence[str], list[list[Any]]]:
    """A row for each arm, means of seeds."""
    rows = []
    for name, made in found.items():
        nats = [one["mtp_nats"][0] for one in made["of_seeds"] if "mtp_nats" in one]
        rows.append([
            name, made["claim"], f"{mean(made, 'nats'):.4f}",
            str(against(found, name, "none")) if name != "none" else "-",
            f"{sum(nats) / len(nats):.3f}" if nats else "-",
            *("-" if share is None else f"{100 * share:.1f} %"
              for share in (accepted(made, 0), accepted(made, 1))),
            f"{made['flops_a_token']:,.0f}", f"{mean(made, 'cpu_seconds'):.0f}"])
    return COLUMNS, rows


def judge(found: Found) -> Verdicts:
    """Verdicts by the rules of the page."""
    cost, weight = against(found, "one", "none"), against(found, "one", "flat")
    share = accepted(found["one"], 0)
    assert share is not None, "an arm with a module has drafts"
    second = accepted(found["two"], 1)
    assert second is not None, "an arm of two modules has two drafts"
    return {
        "main": said(verdicts.no_higher(cost, MARGIN), f"{cost} nats"),
        "weight": said(verdicts.no_higher(weight, MARGIN), f"{weight} nats"),
        "accepted": said(
            verdicts.SUPPORTS if share >= REPORTED[0] else verdicts.SILENT,
            f"{100 * share:.1f} % on held-out text, of the third token {100 * second:.1f} %"),
    }


def draw(found: Found, path: Path) -> None:
    """Main loss of each arm, and what is accepted by depth."""
    share, cost = accepted(found["one"], 0) or 0.0, against(found, "one", "none").mean
    with plot.figure(path, width=8.6, height=3.1, panels=2) as axes:
        drawn.dots(axes[0], found, list(found), "nats", "held-out nats of the next token")
        axes[0].set_title(f"A second token: {cost:+.3f} nats on the first")
        for color, name in zip(plot.COLORS[1:], list(found)[1:], strict=False):
            depths = len(found[name]["of_seeds"][0]["acceptance"])
            for run in found[name]["of_seeds"]:
                axes[1].plot(range(2, 2 + depths), [100 * one for one in run["acceptance"]], "o-",
                             color=color, alpha=0.6,
                             label=name if run is found[name]["of_seeds"][0] else None)
        axes[1].axhspan(*(100 * one for one in REPORTED), color=plot.COLORS[2], alpha=0.3,
                        label="V3 report")
        axes[1].set_xticks([2, 3])
        axes[1].set_ylim(0, 100)
        axes[1].set_xlabel("token ahead")
        axes[1].set_ylabel("accepted, %")
        axes[1].set_title(f"{100 * share:.0f} % of second tokens are accepted")
        axes[1].legend()


ANSWER = Answer("arms", "main loss and acceptance with modules for further tokens", table, judge,
                draw)


def main(asked: Asked) -> int:
    """Train the arms, judge, write and draw."""
    return answer.main(asked, trials(), ANSWER)
