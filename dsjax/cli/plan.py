"""`dsjax plan CONFIG --on h800:2048`: what a run will take, by arithmetic."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from rich.table import Table

from dsjax.cli.plans import here, served
from dsjax.config import load
from dsjax.config.flags.flag_tree import Mark, Word
from dsjax.config.run import RunConfig, with_fields
from dsjax.disk import to_json
from dsjax.errors import UserError, say
from dsjax.terminal import Console

if TYPE_CHECKING:  # jax costs a second to import
    from dsjax.plan.cost.bill import Bill
    from dsjax.plan.cost.search import Found, Searched
    from dsjax.plan.evidence.calibration import Row


@dataclass(frozen=True)
class Calibration:
    """Print published runs beside what is predicted of them; some fitted a factor, most nothing."""

    json: bool = False
    """Print one JSON object."""


@dataclass(frozen=True)
class Claims:
    """Print the ladder from a dense float32 model to V3, a factor a step, and what it serves."""

    json: bool = False
    """Print one JSON object."""


@dataclass(frozen=True)
class Here:
    """Measure this machine and print which configs it can train, how, and how long that takes.

    One device: its rates of products and of memory are measured, its free memory is asked for. Each
    config keeps its batch; recomputation and microbatches are chosen. On a CPU products are taken
    in float32.
    """

    config: str | None = None
    """One config alone; by default all of the project that train on text."""
    precision: Literal["fp32", "bf16", "fp8"] | None = None
    """Operands of products; by default the config's, on a CPU fp32."""
    tokens: float | None = None
    """Tokens to train on; by default all of the config."""
    json: bool = False
    """Print one JSON object."""


@dataclass(frozen=True)
class Plan:
    """Say what a run's step takes on a machine that need not be here: time, memory, days, dollars.

    By arithmetic: rooflines of products, memory and links, the pipeline simulated, shares of the
    data sheets' rates that are named with their source, and one factor for each stack of programs
    that is fitted to one published run. A config's own layout is taken where its axes multiply to
    the machine; otherwise all layouts are tried and the fastest that fits is shown. Batches have
    their final size. `dsjax compile` asks the real compiler.

      dsjax plan deepseek_v3 --on h800:2048
      dsjax plan deepseek_v3 --on h800:2048 --search 10
      dsjax plan deepseek_v3 --on gb200:256 --parallel.pipe 4 --parallel.expert 64 \\
          --parallel.schedule interleaved --chunks 4 --train.batch-size 4096 \\
          --train.microbatches 64 --machine.remat v3
      dsjax plan deepseek_v3 --on h800:144 --decode 88 --context 4989
      dsjax plan --here
      dsjax plan --calibration
      dsjax plan --claims
    """

    INSTEAD: ClassVar[dict[str, type]] = {"--calibration": Calibration, "--claims": Claims,
                                          "--here": Here}

    config: Annotated[str, Word("CONFIG")]
    """A name, a file with one config() or the folder of a run."""
    run: Annotated[RunConfig, Mark.INLINE]
    on: str
    """A chip and how many: h800:2048, gb200:256, tpu7x:128, h200:256x8. Known are v4, v5e, v5p,
    v6e, tpu7x, a100-40, a100-80, h100, h800, h200, b200, b300, gb200, gb300, 4090 and 5090."""
    stack: str | None = None
    """Program whose published speed counts: deepseek, megatron, megatron-2025, maxtext, automodel
    or simumax; by default the one known for the chip."""
    chunks: int | None = None
    """Stages of a rank, of the schedule interleaved."""
    search: int | None = None
    """Show so many of the fastest layouts that fit, and why the others do not."""
    decode: int | None = None
    """Plan serving instead: decoding with so many rows a device, experts over the whole machine;
    and reading prompts there."""
    context: int = 4096
    """Positions behind each row that is decoded, and tokens of a prompt that is read."""
    tokens: float | None = None
    """Tokens to train on; by default all of the config."""
    dollars: float | None = None
    """Price of a chip-hour; known is the report's own of an H800, 2."""
    json: bool = False
    """Print one JSON object."""

    @staticmethod
    def lent(run: RunConfig) -> RunConfig:
        """A config's run once its ramp of batches is over."""
        return with_fields(run, train={"batch_size_start": None, "batch_size_ramp_steps": 0})


def main(args: Plan | Calibration | Claims | Here) -> int:
    """Run the command; returns the exit status: 1 where a given layout does not fit."""
    if isinstance(args, Calibration):
        return _calibrate(args)
    if isinstance(args, Claims):
        return served.claims(args.json)
    if isinstance(args, Here):
        return here.main(args.config, args.precision, args.tokens, args.json)
    if args.decode is not None:
        return served.decode(args.run, args.on, args.decode, args.context, args.json)
    from dsjax.plan.cost import bill, efficiency, room, search, site, step

    where = site.parse(args.on)
    stack = efficiency.stack(args.stack, where)
    searched, run = None, args.run
    if args.search is not None or run.parallel.devices != where.devices:
        _refuse_half(args, where.devices)
        searched = search.search(run, where, stack)
        search.refuse_none(searched, run, where)
        found = searched.found[0]
    else:
        found = search.Found(run, step.estimate(run, where, stack, args.chunks),
                             room.room(run, where, args.chunks))
    own = load.load(args.config)
    lengths = (run.train.steps, run.train.batch_size, run.train.seq_len)
    is_own = lengths == (own.train.steps, own.train.batch_size, own.train.seq_len)
    priced = bill.bill(own if is_own else run, where, found.estimate, args.tokens, args.dollars)
    said = summary(args, found, priced, stack.name)
    if args.json:
        extra = {} if searched is None else {"search": _of_search(searched, args.search or 1)}
        print(to_json(said | extra))
    else:
        _print(said, searched, args.search)
    return 0 if found.room.fits else 1


def _refuse_half(args: Plan, devices: int) -> None:
    """Refuse a layout that was given, and is not of the machine."""
    layout = args.run.parallel
    if args.search is not None and not 1 <= args.search <= 1000:
        raise UserError(f"--search {args.search} is not a number from 1 up to 1,000; give one")
    if args.search is None and layout.devices != 1:
        raise UserError(
            f"--on {args.on} has {devices:,} devices and the layout {layout} uses "
            f"{layout.devices:,}; choose --parallel sizes whose product is {devices:,}, or leave "
            "them all out to have layouts tried")


def summary(args: Plan, found: Found, priced: Bill, stack: str) -> dict[str, Any]:
    """Everything that `--json` prints of a plan; bytes are of one device."""
    from dsjax.plan.cost import efficiency, site

    where, made, run = site.parse(args.on), found.estimate, found.run
    parts = {f.name: getattr(made, f.name) for f in dataclasses.fields(made)
             if f.name not in ("tokens", "flops")}
    rate = made.flops / made.step / where.chips
    return {
        "config": run.name, "machine": f"{where.kind}:{where.chips}", "stack": stack,
        "layout": str(run.parallel), "parallel": dataclasses.asdict(run.parallel),
        "batch": run.train.batch_size, "length": run.train.seq_len,
        "microbatches": run.train.microbatches, "precision": run.precision.matmul,
        "remat": run.machine.remat, "step_s": made.step, "parts_s": parts,
        "tokens_per_s_per_chip": made.tokens / made.step / where.chips,
        "tokens_per_day": made.tokens / made.step * 86400,
        "tflop_s_per_chip": rate / 1e12, "mfu": rate / (where.chip.bf16 * where.chip.cores),
        "bytes": found.room.parts, "total_bytes": found.room.total, "limit": found.room.limit,
        "fits": found.room.fits, **{f"run_{name}": value for name, value in
                                    dataclasses.asdict(priced).items()},
        "shares": {name: dataclasses.asdict(share) for name, share in efficiency.SHARES.items()},
        "fitted": {"reached": efficiency.STACKS[stack].reached,
                   "to": efficiency.STACKS[stack].fitted_to},
    }


def _of_search(made: Searched, most: int) -> dict[str, Any]:
    return {
        "fitting": len(made.found), "rejected": dict(made.reasons),
        "fastest": [{"parallel": dataclasses.asdict(one.run.parallel),
                     "microbatches": one.run.train.microbatches, "remat": one.run.machine.remat,
                     "step_s": one.estimate.step, "total_bytes": one.room.total}
                    for one in made.found[:most]],
        "all_rejected": [fields | {"reason": reason} for fields, reason in made.rejected],
    }


def _print(said: dict[str, Any], searched: Searched | None, most: int | None) -> None:
    console = Console()
    console.print(f"{said['config']} on {said['machine']}: {said['layout']}; {said['batch']:,} "
                  f"rows of {said['length']:,} tokens in {said['microbatches']} microbatches, "
                  f"{said['precision']}, remat {said['remat']}, stack {said['stack']}")
    console.print_whole(_times(said), _bytes(said))
    console.print(f"{said['tokens_per_s_per_chip']:,.0f} tokens/s and "
                  f"{said['tflop_s_per_chip']:,.0f} TFLOP/s a chip, {said['mfu']:.1%} of its "
                  f"bfloat16 rate; {said['tokens_per_day'] / 1e9:,.1f}B tokens a day")
    money = "" if said["run_dollars"] is None else (
        f", ${_short(said['run_dollars'])} ({said['run_price']})")
    console.print(f"{_short(said['run_tokens'])} tokens: {said['run_days']:,.3g} days, "
                  f"{_short(said['run_chip_hours'])} chip-hours{money}")
    if searched is not None and most is not None:
        console.print_whole(_layouts(searched, most), _reasons(searched))
    elif searched is not None:
        say(f"the layout is the fastest of {len(searched.found):,} that fit, of "
            f"{len(searched.found) + len(searched.rejected):,} tried; --search 10 shows more")
    if not said["fits"]:
        console.print(f"does not fit: {said['total_bytes'] / 1e9:.1f} GB of "
                      f"{said['limit'] / 1e9:.1f}; leave the layout out to have others tried")


def _short(number: float) -> str:
    """A number of four digits, with T, B, M or K."""
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K")):
        if number >= size:
            return f"{number / size:.4g}{letter}"
    return f"{number:.4g}"


WORDS = {"products": "products", "core": "scores and values", "memory": "memory beside products",
         "again": "recomputation", "overhead": "the stack's overhead (fitted)",
         "links": "links not hidden", "bubble": "pipeline and unequal stages",
         "optimizer": "optimizer"}


def _times(said: dict[str, Any]) -> Table:
    drawn = served.table(f"a step, estimated: {said['step_s']:.2f} s", "part", "s", "share")
    for name, words in WORDS.items():
        seconds = said["parts_s"][name]
        drawn.add_row(words, f"{seconds:.3f}", f"{seconds / said['step_s']:.1%}")
    return drawn


def _bytes(said: dict[str, Any]) -> Table:
    drawn = served.table(f"a device, counted: {said['total_bytes'] / 1e9:.1f} of "
                   f"{said['limit'] / 1e9:.1f} GB", "kind", "GB")
    for name, size in said["bytes"].items():
        drawn.add_row(name, f"{size / 1e9:.2f}")
    return drawn


def _layouts(made: Searched, most: int) -> Table:
    drawn = served.table(f"the fastest of {len(made.found):,} layouts that fit", "layout",
                   "microbatches", "remat", "s a step", "GB")
    for one in made.found[:most]:
        drawn.add_row(str(one.run.parallel), str(one.run.train.microbatches),
                      one.run.machine.remat, f"{one.estimate.step:.2f}",
                      f"{one.room.total / 1e9:.1f}")
    return drawn


def _reasons(made: Searched) -> Table:
    drawn = served.table(f"{len(made.rejected):,} that do not", "reason", "layouts")
    for reason, count in made.reasons.most_common():
        drawn.add_row(reason, f"{count:,}")
    return drawn


def _calibrate(args: Calibration) -> int:
    from dsjax.plan.evidence import calibration

    made = calibration.rows()
    median, worst = calibration.median_error(made), calibration.worst(made)
    if args.json:
        print(to_json({"median_error": median, "worst": worst.published.name,
                       "rows": [_row(row) for row in made]}))
        return 0
    drawn = served.table("tokens/s of a chip, and its memory", "run", "published", "predicted",
                         "error", "GiB", "predicted", "fitted")
    for row in made:
        one = row.published
        drawn.add_row(one.name, f"{one.tokens_per_chip:,.0f}", f"{row.predicted:,.0f}",
                      f"{row.error:+.1%}", "" if one.gib is None else f"{one.gib:.1f}",
                      "" if one.gib is None else f"{calibration.gib(one):.1f}",
                      one.stack if row.is_fitted else "")
    Console().print_whole(drawn)
    free = sum(not row.is_fitted for row in made)
    Console().print(f"median error of the {free} rows that fitted nothing: {median:.1%}; the worst "
                    f"is {worst.published.name}, {worst.error:+.1%}")
    return 0


def _row(row: Row) -> dict[str, Any]:
    from dsjax.plan.evidence import calibration

    one = row.published
    return {"run": one.name, "source": one.source, "machine": one.site, "stack": one.stack,
            "layout": str(one.layout), "assumed": one.assumed, "published": one.tokens_per_chip,
            "predicted": row.predicted, "error": row.error, "fitted": row.is_fitted,
            "published_gib": one.gib,
            "predicted_gib": None if one.gib is None else calibration.gib(one)}
