"""Exchanges of a pipeline that compilers for machines that are not here hide: compiled, not run.

Each schedule with experts over two devices in each of four stages, compiled for v5p and for H200
from shapes alone. The compiler's schedule says which exchange has matrix products between its start
and its done; the table says how often a rank runs the branch it stands in.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from configs import tiny
from dsjax.config.model import MLAConfig
from dsjax.config.parallel import ParallelConfig
from dsjax.config.run import PrecisionConfig, RunConfig
from dsjax.layers.backend import single
from dsjax.model import transformer
from dsjax.model.loss import Batch
from dsjax.numerics import precision as numerics
from dsjax.parallel import mesh, rules
from dsjax.parallel.mesh import AXES
from dsjax.pipeline import executor
from dsjax.pipeline.executor import Pipeline
from dsjax.pipeline.instructions import Program, compile_table, shortest
from dsjax.pipeline.schedules.build import NAMES, build
from dsjax.plan import hlo
from dsjax.plan import target as targets
from dsjax.runtime import compiler
from dsjax.runtime.backend import for_rank
from dsjax.train import step
from experiments.common import machines
from experiments.common.command import Asked

TARGETS = {"v5p": "v5p:2x2x2", "h200": "h200:1x8"}
UNIT = ("exchanges in the program and MiB of the busiest rank in a step, beside products, beside "
        "other work only, and beside nothing")
MORE = {"cuda": {
    "xla_gpu_enable_triton_gemm": False,  # products by cuBLAS take half the time to compile
    "xla_gpu_experimental_parallel_collective_overlap_limit": 4,  # as many may travel at once
}}
RANKS, MICROBATCHES, ROWS, LENGTH = 4, 8, 8, 128
FORMS = [("dualpipe", "open"), ("dualpipe", "branched"), ("1f1b", "branched"),
         *((name, "branched") for name in NAMES if name not in ("dualpipe", "1f1b"))]


def run_of(stages: int) -> RunConfig:
    """One mixture layer a stage, 1,024 tokens a device and microbatch, bfloat16."""
    base = tiny.config()
    model = dataclasses.replace(
        base.model, d_model=1024, layers=stages, dense_layers=0, mtp_depth=0,
        attention=MLAConfig(heads=8, q_rank=512, kv_rank=256, nope_dim=128, rope_dim=64,
                            value_dim=128),
        moe=dataclasses.replace(base.model.moe, expert_dim=512))
    train = dataclasses.replace(base.train, batch_size=2 * ROWS * MICROBATCHES, seq_len=LENGTH,
                                microbatches=MICROBATCHES)
    return dataclasses.replace(base, model=model, train=train, precision=PrecisionConfig("bf16"),
                               machine=dataclasses.replace(base.machine, remat="none"))


def compiled(name: str, form: str, machine: str) -> tuple[Program, str]:
    """A schedule's program in numbers and as a machine's compiler scheduled it."""
    schedule = build(name, RANKS, MICROBATCHES)
    program, run = compile_table(shortest(schedule)), run_of(schedule.stages)
    target = targets.parse(TARGETS[machine])
    layout = ParallelConfig(pipe=RANKS, expert=2)
    devices = mesh.make_mesh(layout, targets.devices(target))
    backend = for_rank(single(numerics.BF16, jnp.bfloat16), run.model, layout)
    pipe = Pipeline(program, devices, run.model, backend, form != "branched")
    specs = transformer.specs(run.model)

    def take(p: Any, batch: Batch) -> executor.Outcome:
        held = numerics.quantize_weights(p, specs, backend.precision)
        cut = jax.tree.map(lambda a: a.reshape(MICROBATCHES, -1, *a.shape[1:]), batch)
        return executor.run(pipe, p, held, cut, step.objective_of(run, batch, jnp.int32(0)))

    shapes = jax.eval_shape(lambda: transformer.init(run.model, jax.random.key(0)))
    p = jax.tree.map(lambda a, where: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=where),
                     shapes, rules.used_shardings(specs, devices))
    rows, shape = mesh.sharding(devices, AXES), (run.train.batch_size, LENGTH + 1)
    batch = Batch(*(jax.ShapeDtypeStruct(shape, dtype, sharding=rows)
                    for dtype in (jnp.int32, jnp.int32, jnp.float32)))
    platform = target.chip.platform
    lowered = jax.jit(take).trace(p, batch).lower(lowering_platforms=(platform,))
    asked = compiler.ahead(platform) | MORE.get(platform, {})
    return program, lowered.compile(compiler_options=asked).as_text()


def branch_paths(text: str) -> dict[str, tuple[tuple[int, int], ...]]:
    """For each computation, which branch of how many it stands in, from the outermost switch in."""
    program = hlo.parse(text)
    found: dict[str, tuple[tuple[int, int], ...]] = {}

    def visit(name: str, path: tuple[tuple[int, int], ...]) -> None:
        found[name] = path
        for line in program.computations[name]:
            if line.opcode == "conditional":
                others = line.called  # of a predicate the true one is written first
                if "true_computation=" in line.rest:
                    others = others[::-1]
                for index, other in enumerate(others):
                    visit(other, (*path, (index, len(others))))
            elif line.opcode in ("while", "call"):
                for other in line.called:
                    visit(other, path)

    visit(program.entry, ())
    return found


def where(path: tuple[tuple[int, int], ...], program: Program,
          is_unrolled: bool) -> tuple[str, int]:
    """The slot a path stands in, and how often the busiest rank runs it."""
    columns, slots = program.instructions.branch, program.steps.slots
    steady = program.steady_state if is_unrolled else np.zeros(slots, bool)
    rest = list(path)
    if steady.any() and rest and rest[0][1] == 2:
        if rest.pop(0)[0] == 1:
            return "all ranks paired", int(steady.sum())
        if not rest or len(program.branches) == 1:
            return "exchange", int((~steady).sum())
    if rest and rest[0][1] == len(program.branches) > 1:
        kinds = "&".join(kind.value for kind in program.branches[rest[0][0]]) or "idle"
        return kinds, int(((columns == rest[0][0]) & ~steady).sum(axis=1).max())
    return "exchange", slots


def exchanges(name: str, form: str, machine: str) -> list[dict[str, Any]]:
    """Every exchange that a rank runs in a step: its slot, runs, bytes, what hides it."""
    program, text = compiled(name, form, machine)
    paths, found = branch_paths(text), []
    for one in hlo.collectives(text):
        per_slot = one.times / program.steps.slots
        if one.is_rare or per_slot < 1:
            continue
        slot, runs = where(paths[one.computation], program, form == "open")
        kind = "transfer" if one.kind == "collective-permute" else one.kind
        found.append({"kind": kind.removeprefix("ragged-"), "slot": slot, "bytes": one.bytes,
                      "runs": round(runs * per_slot), "is_async": one.is_async,
                      "products": one.products, "others": one.others})
    return found


def counted(found: list[dict[str, Any]], *kinds: str) -> tuple[str, str]:
    """Exchanges in the program and MiB that a rank runs: beside products, other work, nothing."""
    mine = [e for e in found if e["kind"] in kinds]
    beside = [e["is_async"] * (2 if e["products"] else bool(e["others"])) for e in mine]
    each = [[e for e, b in zip(mine, beside, strict=True) if b == n] for n in (2, 1, 0)]
    sizes = [sum(e["bytes"] * e["runs"] for e in group) / 2**20 for group in each]
    return (", ".join(str(len(group)) for group in each),
            ", ".join(f"{size:.0f}" for size in sizes))


def one(machine: str, name: str, form: str) -> None:
    """Compile one program and print its exchanges as a line of JSON."""
    print("exchanges " + json.dumps(exchanges(name, form, machine)), flush=True)


def main(asked: Asked) -> None:
    """Compile what the record does not have yet; delete it to compile all anew."""
    jax.config.update("jax_platforms", "cpu")  # the compilers' plugins look for their machines
    path = asked.records / "ahead.json"
    forms, there = FORMS, list(TARGETS.values())
    if asked.is_quick:
        forms, there = [("1f1b", "branched")], machines.here(there)
    machines.require(there)
    done = {}
    if path.exists():
        done = {(e["machine"], e["schedule"], e["form"]): e["exchanges"]
                for e in json.loads(path.read_text())["exchanges"]}
    for machine, (name, form) in ((m, f) for m in reversed(TARGETS) for f in forms):
        if (machine, name, form) not in done and TARGETS[machine] in there:
            done[machine, name, form] = _compile_apart(machine, name, form)
            print(machine, name, form, flush=True)
            write(asked, done)


def _compile_apart(machine: str, name: str, form: str) -> list[dict[str, Any]]:
    """The exchanges of a program, compiled in a process of its own: compilers keep memory."""
    code = f"from experiments.pipelines import ahead; ahead.one({machine!r}, {name!r}, {form!r})"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True,
                         env=os.environ | {"JAX_PLATFORMS": "cpu"})
    lines = [x for x in ran.stdout.splitlines() if x.startswith("exchanges ")]
    if not lines:
        raise RuntimeError(ran.stderr[-2000:])
    return json.loads(lines[0].removeprefix("exchanges "))


def write(asked: Asked, done: dict[tuple[str, str, str], list[dict[str, Any]]]) -> None:
    """Write the two records of what is compiled so far."""
    rows, pairs = [], []
    for (machine, name, form), found in done.items():
        by_kind = [counted(found, "all-to-all"), counted(found, "transfer")]
        rows.append([machine, name, form, *by_kind[0], *by_kind[1]])
        for slot in ("F&BW", "all ranks paired"):
            mine = [e for e in found if e["slot"] == slot]
            if name == "dualpipe" and mine:
                pairs.append([machine, form, slot, *counted(mine, "all-to-all"),
                              *counted(mine, "transfer")])
    shape = {"ranks": RANKS, "microbatches": MICROBATCHES, "experts_over": 2,
             "tokens": ROWS * LENGTH, "d_model": 1024, "layers_a_stage": 1}
    every = [{"machine": m, "schedule": n, "form": f, "exchanges": e}
             for (m, n, f), e in done.items()]
    asked.write(
        "ahead",
        "what compilers for v5p and H200 hide of each schedule's exchanges; compiled, not run",
        ["for", "schedule", "form", "all-to-alls", "MiB", "transfers", "MiB"], rows,
        unit=UNIT, exchanges=every, **shape,
    )
    asked.write(
        "pairs",
        "DualPipe's paired slots as compilers for v5p and H200 schedule them; compiled, not run",
        ["for", "form", "slots", "all-to-alls", "MiB", "transfers", "MiB"], pairs,
        unit=UNIT, **shape,
    )
