"""`dsjax compile CONFIG --on v5p:8x16x16`: compile a run's step for a machine that is not here."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from rich import box
from rich.table import Table

from dsjax.config.flags.flag_tree import Mark, Word
from dsjax.config.run import RunConfig
from dsjax.disk import to_json
from dsjax.errors import UserError
from dsjax.terminal import Console

if TYPE_CHECKING:  # JAX and the model cost a second to import
    from dsjax.plan.target import Target
    from dsjax.plan.train_step import Plan

@dataclass(frozen=True)
class Compile:
    """Compile a run's whole training step for a machine that is not here.

    The step is the one that `dsjax train` would run there, or an update of `dsjax rl`. Printed are
    what a device needs by kind, every collective with its bytes, and which of them run beside
    computation. Nothing is run. Leaves with status 1 where a device has too little memory, and says
    what to change. Any field of the run can be overridden:

      dsjax compile tiny --on h200:1x8 --parallel.data 2 --parallel.expert 4
      dsjax compile tiny --on v5p:2x2x1 --parallel.expert 4 --precision bf16
      dsjax compile tiny --on h200:1x8 --parallel.expert 8 --precision bf16 --prefill 131072

    The compilers are the extras tpu-aot and gpu-aot: pip install 'dsjax[tpu-aot]'.
    """

    config: Annotated[str, Word("CONFIG")]
    """A name, a file with one config() or the folder of a run."""
    run: Annotated[RunConfig, Mark.INLINE]
    on: str
    """A TPU and the chips along each axis of its torus (v5p:8x16x16, v5e:4x4, v6e:16x16), or a GPU,
    nodes and GPUs of a node (h200:256x8, h100:1x8)."""
    json: bool = False
    """Print one JSON object."""
    text: Path | None = None
    """File to write the compiled program into (HLO text, scheduled)."""
    prefill: int | None = None
    """Compile, instead of the step, the program by which the engine reads a prompt of so many
    tokens, one prompt on each device."""
    piece: int = 256
    """Tokens that --prefill reads at once."""


def main(args: Compile) -> int:
    """Compile and report; returns the exit status."""
    from dsjax.plan import target

    found = target.parse(args.on)
    target.require(found)
    import jax

    jax.config.update("jax_platforms", "cpu")  # a plugin without its machine would look for it
    if args.prefill is not None:
        from dsjax.cli.plans import prefill

        return prefill.main(args.run, found, args.prefill, args.piece, args.json)
    made = _planned(args.run, found)
    if args.text is not None:
        _write(made, args.text)
    if args.json:
        print(to_json(summary(made)))
    else:
        _print(made)
    return 0 if made.memory.fits else 1


def _planned(run: RunConfig, found: Target) -> Plan:
    """The plan of a run's step: an update of its policy, where it learns from rewards."""
    from dsjax.plan import train_step

    if run.rl is None:
        return train_step.plan(run, found)
    from dsjax.rl import update

    own = update.training_run(run)
    return train_step.plan(own, found, train_step.Foreign(
        update.token_loss(run.rl), update.extra_of(run.rl), run.rl.replay_routes))


def summary(made: Plan) -> dict[str, Any]:
    """Everything that `--json` prints; bytes are of one device and one step."""
    from dsjax.plan import hlo
    from dsjax.plan.ahead import Compiled

    result = made.result
    found = result.collectives if isinstance(result, Compiled) else ()
    return {
        "config": made.run.name,
        "machine": made.target.name,
        "devices": made.target.devices,
        "layout": str(made.run.parallel),
        "parallel": dataclasses.asdict(made.run.parallel),
        "batch": made.run.train.batch_size,
        "length": made.run.train.seq_len,
        "microbatches": made.run.train.microbatches,
        "precision": made.run.precision.matmul,
        "remat": made.run.machine.remat,
        "fits": made.memory.fits,
        "bytes": made.memory.total,
        "limit": made.memory.limit,
        "parts": made.memory.parts,
        "working": made.memory.working,
        "temporaries": result.temporaries if isinstance(result, Compiled) else None,
        "advice": made.advice,
        "compiled": isinstance(result, Compiled),
        "seconds": round(result.cost.seconds, 1),
        "cpu_seconds": round(result.cost.cpu_seconds, 1),
        "peak_memory": result.cost.peak_memory,
        "attention": result.attention if isinstance(result, Compiled) else None,
        "options": result.options if isinstance(result, Compiled) else {},
        "collectives": hlo.summary(found),
    }


def _print(made: Plan) -> None:
    said, console = summary(made), Console()
    console.print(f"{said['config']} on {said['machine']}: {said['devices']} devices, "
                  f"{said['layout']}; {said['batch']} rows of {said['length']} tokens in "
                  f"{said['microbatches']} microbatches, {said['precision']}, remat "
                  f"{said['remat']}", highlight=False, soft_wrap=True)
    console.print(_memory(said))
    if said["collectives"]:
        console.print(_collectives(said))
    if said["attention"] is not None:
        console.print(f"attention: {said['attention']}", highlight=False)
    verdict = "fits" if said["fits"] else f"does not fit: {said['advice']}"
    done = "compiled" if said["compiled"] else "refused by the compiler"
    console.print(f"{verdict}\n{done} in {said['seconds']:.0f} s ({said['cpu_seconds']:.0f} s of "
                  f"CPU) and {said['peak_memory'] / 1e9:.1f} GB; not run", highlight=False,
                  soft_wrap=True)


def _memory(said: dict[str, Any]) -> Table:
    """Draw bytes of a device by kind."""
    table = Table(box=box.SIMPLE, header_style="")
    table.add_column("a device's memory")
    table.add_column("GB", justify="right")
    for kind, size in said["parts"].items():
        table.add_row(kind, f"{size / 1e9:.2f}")
    for kind, size in said["working"].items():
        table.add_row(f"  {kind}", f"{size / 1e9:.2f}")
    table.add_row("together", f"{said['bytes'] / 1e9:.2f}")
    table.add_row("there is", f"{said['limit'] / 1e9:.2f}")
    return table


def _collectives(said: dict[str, Any]) -> Table:
    """Draw collectives by kind and group, with the share of bytes that other work runs beside."""
    table = Table(box=None, header_style="", padding=(0, 2, 0, 0), caption_justify="left",
                  caption="in a step: devices that take part together; async, of those in the "
                  "program; bytes beside matrix products, and beside other work only")
    table.add_column("collective", no_wrap=True)
    for head in ("devices", "runs", "GB", "async", "products", "other"):
        table.add_column(head, justify="right", no_wrap=True)
    for row in said["collectives"]:
        if row["count"]:
            shares = (f"{row[kind] / max(row['bytes'], 1):.0%}"
                      for kind in ("hidden_bytes", "other_bytes"))
            table.add_row(row["kind"], str(row["group"]), str(row["runs"]),
                          f"{row['bytes'] / 1e9:.3f}", f"{row['asynchronous']} of {row['count']}",
                          *shares)
    return table


def _write(made: Plan, path: Path) -> None:
    from dsjax.plan.ahead import Compiled

    if not isinstance(made.result, Compiled):
        raise UserError(f"there is no program to write into {path}: the compiler refused the step "
                        f"for {made.memory.total / 1e9:.1f} GB; {made.advice}")
    try:
        path.write_text(made.result.text)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}; choose another --text") from error
