"""`dsjax bench gemm`: the block-scaled FP8 product beside bfloat16's, at V3's shapes."""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from dsjax.cli.process import devices
from dsjax.config.fields import counted
from dsjax.disk import to_json

BFLOAT16 = "bfloat16"
V3_SHAPES = {"m": 4096, "k": 7168}
V3_COLUMNS = (2048, 4096, 18432)
CPU_SHAPES = {"m": 512, "k": 1024}
CPU_COLUMNS = (512,)


@dataclass(frozen=True)
class Gemm:
    """Time the block-scaled FP8 product beside bfloat16's, at V3's shapes.

    Times y = x w of operands that are quantized already, in turn: in bfloat16, as FP8 training
    computes it on this machine (1x128 tiles, 128x128 blocks, promoted every 128), and, where there
    are FP8 products, of codes with no scales at all, the rate that FP8 reaches here. The ratios are
    taken within a round. Also printed is what FP8's result differs from the exact product of the
    same codes, in parts of the largest entry.
    """

    m: int | None = None
    """Rows; by default V3's 4,096, on a CPU 512."""
    k: int | None = None
    """Entries that are summed; by default V3's 7,168, on a CPU 1,024."""
    n: int | None = None
    """Columns; by default V3's 2,048, 4,096 and 18,432 in turn, on a CPU 512."""
    rounds: int = 5
    """Rounds in which each form is timed."""
    calls: int = 20
    """Products a round."""
    json: bool = False
    """Print one JSON line a shape."""

    def __post_init__(self) -> None:
        """Refuse sizes of nothing."""
        counted("Gemm", **{name: value for name in ("m", "k", "n", "rounds", "calls")
                           if (value := getattr(self, name)) is not None})


def measure(args: Gemm) -> int:
    """Measure every shape, and print a line each."""
    import jax

    devices.require()
    is_cpu = jax.default_backend() == "cpu"
    shape = CPU_SHAPES if is_cpu else V3_SHAPES
    columns = CPU_COLUMNS if is_cpu else V3_COLUMNS
    for n in (args.n,) if args.n else columns:
        found = compare(args.m or shape["m"], args.k or shape["k"], n, args.rounds, args.calls)
        if args.json:
            print(to_json(found), flush=True)
            continue
        print(f"{found['m']} x {found['k']} x {found['n']} on {found['device']}")
        for name, form in found["forms"].items():
            print(f"  {name:<16} {form['ms']:>9.3f} ms {form['tflop_s']:>9.2f} TFLOP/s  "
                  f"{form['to_bfloat16']:.2f} of bfloat16's rate ({form['least']:.2f} to "
                  f"{form['most']:.2f})")
        print(f"  FP8 differs from the exact product by {found['difference']:.1e}", flush=True)
    return 0


def compare(m: int, k: int, n: int, rounds: int, calls: int) -> dict[str, Any]:
    """Milliseconds and rates of each form of one product."""
    import jax
    import jax.numpy as jnp

    from dsjax.config.machine import MachineConfig
    from dsjax.numerics import gemm as emulated
    from dsjax.numerics.precision import BF16, Precision, contract
    from dsjax.runtime import header
    from dsjax.runtime import precision as runtime

    device = jax.devices()[0]
    operands = runtime.fp8_operands(MachineConfig(), device)
    x = jax.random.normal(jax.random.key(0), (m, k), jnp.bfloat16)
    w = jax.random.normal(jax.random.key(1), (k, n), jnp.bfloat16) / k**0.5

    def form(of: Precision) -> tuple[Callable[..., Any], Any, Any]:
        return jax.jit(of.fprop), jax.jit(of.quantize_for_fprop)(x), jax.jit(of.quantize_weight)(w)

    mine, exact = form(runtime.fp8(operands)), form(emulated.FP8)
    forms = {BFLOAT16: form(BF16), f"FP8 ({operands})": mine}
    if operands != "values":
        forms["FP8, no scales"] = (jax.jit(lambda a, b: contract(a, b, 1, 2)), mine[1].codes,
                                   mine[2].codes)
    seconds = timed({name: functools.partial(f, a, b) for name, (f, a, b) in forms.items()},
                    rounds, calls)
    y, expected = mine[0](*mine[1:]), exact[0](*exact[1:])
    return {
        "mode": "gemm", "m": m, "k": k, "n": n, "device": device.device_kind, "rounds": rounds,
        "calls": calls,
        "forms": {name: rates(2.0 * m * k * n, taken, seconds[BFLOAT16])
                  for name, taken in seconds.items()},
        "difference": float(jnp.abs(y - expected).max() / jnp.abs(expected).max()),
        "versions": header.versions(),
    }


def timed(forms: dict[str, Callable[[], Any]], rounds: int, calls: int) -> dict[str, list[float]]:
    """Seconds of a call of each form, in turn, a number a round; all are called once before."""
    for run in forms.values():
        run().block_until_ready()
    seconds: dict[str, list[float]] = {name: [] for name in forms}
    for _ in range(rounds):
        for name, run in forms.items():
            began = time.perf_counter()
            for _ in range(calls):
                made = run()
            made.block_until_ready()
            seconds[name].append((time.perf_counter() - began) / calls)
    return seconds


def rates(flops: float, taken: Sequence[float], beside: Sequence[float]) -> dict[str, float]:
    """Time and rate in the median of rounds, and the speed-up over `beside` within each round."""
    ratios = [base / mine for base, mine in zip(beside, taken, strict=True)]
    middle = statistics.median(taken)
    return {"ms": 1e3 * middle, "tflop_s": flops / middle / 1e12,
            "to_bfloat16": statistics.median(ratios), "least": min(ratios), "most": max(ratios)}
