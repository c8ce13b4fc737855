"""`dsjax loads RUN`: how unevenly experts were used, and what copies of them would mend."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from rich import box
from rich.table import Table

from dsjax import disk
from dsjax.config.fields import counted
from dsjax.config.flags.flag_tree import Word
from dsjax.disk import to_json
from dsjax.errors import UserError, say
from dsjax.parallel import eplb
from dsjax.terminal import Console

NUMBERS = ("replicas", "nodes", "devices", "groups")


@dataclass(frozen=True)
class Asked:
    """Draw measured loads of experts by layer, and of the devices that hold them.

    Before and after the expert parallel load balancer (EPLB, V3 report sec. 3.4) copies the busiest
    and moves all.
    """

    source: Annotated[Path, Word("RUN_OR_JSON")]
    """A run's folder, whose newest evaluation counts, or a JSON file: a list of layers, each a list
    of loads, alone or as "loads" of an object."""
    devices: int | None = None
    """Devices that share the experts; by default 8, or fewer where 8 do not divide the experts."""
    replicas: int | None = None
    """Experts with their copies; by default one more a device."""
    nodes: int = 1
    """Nodes that the devices belong to; groups of experts stay on one."""
    groups: int | None = None
    """Groups of experts; by default the run's, and 1 for a JSON file."""
    out: Path | None = None
    """File to draw into; by default eplb.png in the run's folder, or beside the file."""
    json: bool = False
    """Print one JSON object: a row a layer, and `placement`, the expert in each slot."""

    def __post_init__(self) -> None:
        """Refuse numbers of nothing."""
        counted("Asked", **{name: value for name in NUMBERS
                            if (value := getattr(self, name)) is not None})


@dataclass(frozen=True)
class Loads:
    """Measured loads [L, E], a name a layer, and where they come from."""

    loads: np.ndarray
    labels: list[str]
    name: str
    groups: int
    png: Path


@dataclass(frozen=True)
class Row:
    """Busiest expert and device of a layer relative to its mean, and the most copies of one."""

    layer: str
    expert_before: float
    device_before: float
    device_after: float
    copies: int


def main(args: Asked) -> int:
    """Draw the loads and print the table; returns the exit status."""
    found = read(args.source)
    png = args.out or found.png
    experts = found.loads.shape[1]
    devices = args.devices or max(d for d in range(1, 9) if experts % d == 0)
    replicas = args.replicas or (-(-experts // devices) + 1) * devices
    try:
        rows, placement, title = compare(
            found, replicas, args.groups or found.groups, args.nodes, devices, png)
    except UserError as error:
        raise UserError(_with_flags(str(error))) from None
    except OSError as error:
        raise UserError(f"{png} cannot be drawn ({error.strerror}); name another --out") from None
    if args.json:
        print(to_json({
            "name": found.name, "devices": devices, "replicas": replicas, "picture": str(png),
            "layers": [asdict(row) for row in rows], "placement": placement.tolist()}))
    else:
        console = Console()
        console.print(title, highlight=False, soft_wrap=True)
        console.print(_table(rows))
        console.print(f"  {png}")
    return 0


def read(path: Path) -> Loads:
    """Loads of a run's folder or of a JSON file."""
    if path.is_dir():
        return _of_run(path)
    data = disk.read_json(path, "give the folder of a run, or a JSON file of loads")
    loads = _array(data["loads"] if isinstance(data, dict) and "loads" in data else data, path)
    labels = [f"layer {i}" for i in range(len(loads))]
    return Loads(loads, labels, path.stem, 1, path.with_suffix(".png"))


def has_loads(folder: Path) -> bool:
    """True for the folder of a run that has counted what its experts were used for."""
    from dsjax.report import metrics

    source = folder / "metrics.jsonl"
    return source.is_file() and any(
        "loads" in e for e in metrics.read_metrics(source, "eval", _warn))


def _of_run(folder: Path) -> Loads:
    from dsjax.config.stored import run_from_json
    from dsjax.report import metrics
    from dsjax.train import step_report

    source = folder / "metrics.jsonl"
    if not has_loads(folder):
        raise UserError(
            f"{folder} holds no loads of experts (metrics.jsonl has them at every evaluation of a "
            "mixture); train with --output.eval-every, or give a JSON file of loads")
    run, events = run_from_json(folder / "config.json"), metrics.read_metrics(source, "eval", _warn)
    labels = step_report.layer_labels(run)
    steps, loads = metrics.recorded_loads(events, len(labels))
    if not steps or run.model.moe is None:
        raise UserError(f"{source} holds no loads of the {len(labels)} layers that the config.json "
                        "beside it has; give the folder of one run")
    return Loads(_array(loads[-1], source), labels, run.name, run.model.moe.groups,
                 folder / "eplb.png")


def _warn(said: str) -> None:
    say(f"dsjax: {said}")


def _array(data: Any, path: Path) -> np.ndarray:
    try:
        loads = np.asarray(data, np.float64)
    except (TypeError, ValueError):
        loads = np.zeros(0)
    if loads.ndim != 2 or not loads.size:
        raise UserError(f"{path} does not hold loads; give a list of layers, each a list of as "
                        "many numbers as there are experts")
    return loads


def compare(found: Loads, replicas: int, groups: int, nodes: int, devices: int,
            png: Path) -> tuple[list[Row], np.ndarray, str]:
    """A row a layer, the placement [L, R] and the title of the picture that is drawn."""
    from dsjax.report import plots
    from dsjax.report.metrics import max_violation

    loads = found.loads
    placement, _, copies = eplb.rebalance_experts(loads, replicas, groups, nodes, devices)
    slots = eplb.slot_loads(loads, placement, copies)
    of_devices = [
        np.stack([p.sum(-1) for p in np.array_split(part, devices, axis=1)], axis=1)
        for part in (loads, slots)]  # in order; as even as it goes where they do not divide
    title = plots.placements((loads, of_devices[0]), (slots, of_devices[1]), png, found.name,
                             found.labels)
    expert, before, after = (np.round(1 + max_violation(part), 4).tolist()
                             for part in (loads, *of_devices))
    rows = [Row(*row) for row in zip(found.labels, expert, before, after,
                                     copies.max(axis=1).tolist(), strict=True)]
    return rows, placement, title


def _table(rows: list[Row]) -> Table:
    drawn = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for head in ("load / mean", "busiest expert", "device", "after", "most copies"):
        drawn.add_column(head, justify="left" if head == "load / mean" else "right")
    for row in rows:
        drawn.add_row(row.layer, f"{row.expert_before:.2f}", f"{row.device_before:.2f}",
                      f"{row.device_after:.2f}", str(row.copies))
    return drawn


def _with_flags(sentence: str) -> str:
    """Name numbers by this command's flags, not by EPLB's arguments."""
    for name, flag in (("num_gpus", "devices"), ("num_experts", "experts"), *(
            (f"num_{name}", name) for name in NUMBERS)):
        sentence = sentence.replace(name, f"--{flag}" if flag in NUMBERS else flag)
    return re.sub(r"(--\w+)=", r"\1 ", sentence)
