"""The loop: draw a batch, step, report one step late, evaluate, save; and leave well when told to.

What makes a resumed run equal an uninterrupted one bit for bit: a checkpoint holds the state, the
host average and the data position of the same step; randomness is in the seed and the step alone;
evaluation changes nothing; and the metrics file is cut back to the step that is resumed from.
"""

from __future__ import annotations

import contextlib
import functools
import math
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from dsjax.checkpoint.store import Store
from dsjax.config.run import RunConfig
from dsjax.config.stored import run_to_json
from dsjax.data import curriculum
from dsjax.data.loader import RowStream, heldout_batches
from dsjax.errors import say
from dsjax.evaluate import heldout
from dsjax.evaluate.heldout import Heldout, HeldoutStep
from dsjax.layers.backend import Backend
from dsjax.model import tuned
from dsjax.model.loss import Batch
from dsjax.optim.ema import HostEMA
from dsjax.report import metrics, pace, profile
from dsjax.report.display import Display, header, open_display
from dsjax.runtime import backend as backends
from dsjax.runtime import cpu, fit, hardware
from dsjax.runtime import header as machine
from dsjax.terminal import Console
from dsjax.train import heartbeat, sharding, step_report, tasks
from dsjax.train.corpus import Corpus
from dsjax.train.folder import hold, resume
from dsjax.train.folder.divergence import GIVE_UP_AFTER, Proof, lost_gradients, lost_model
from dsjax.train.outcome import Outcome, finished
from dsjax.train.signals import Signals
from dsjax.train.state import TrainState
from dsjax.train.step import StepMetrics, TrainStep
from dsjax.train.tuning import frozen as frozen_weights
from dsjax.train.tuning import measure
from dsjax.train.tuning.frozen import Frozen
from dsjax.train.tuning.rows import prepare


@dataclass
class Session:
    """The moving parts of one run in one process."""

    run: RunConfig
    out: Path
    corpus: Corpus
    frozen: Frozen
    stream: RowStream
    state: TrainState
    average: HostEMA | None
    store: Store
    proof: Proof
    writer: metrics.Writer
    display: Display
    speed: pace.Throughput
    profiler: profile.Profiler
    peak: hardware.Peak | None
    heldout_step: HeldoutStep
    mesh: Mesh | None
    scoring: tasks.Scoring
    window_loads: np.ndarray | None = None


def train(
    run: RunConfig, console: Console | None = None, backend: Backend | None = None
) -> Outcome:
    """Train a model from its config, or go on where the folder's newest checkpoint stops.

    `backend` is the platform's choice for the run's precision, unless an experiment gives its own.
    """
    console = console or Console()
    out = resume.folder(run)
    run = frozen_weights.settled(run, out)
    mesh = sharding.open_mesh(run)
    fit.refuse_training(run, mesh, sharding.check)
    if backend is None:
        backend = backends.for_run(run, mesh)
    else:
        backend = backends.over(backend, run.model, run.parallel, mesh)
    said = step_report.of_the_model(run) | machine.describe(run, backend)
    said |= sharding.describe(run, backend, mesh) | {"folder": str(out)}
    with hold.holding(run, out) as is_due:
        header(said, f"dsjax {'train' if run.sft is None else 'sft'} {run.name}", console)
        if not is_due:
            return finished(run, out, console)
        with (fit.explained(run, mesh, sharding.check), heartbeat.watching(out / "processes"),
              Signals().listening() as signals):
            corpus = sharding.first_alone(lambda: prepare(run, out, console.print))
            console.print(step_report.of_the_corpus(run, corpus))
            frozen = frozen_weights.load(run, out, mesh, console.print)
            run = measure.settled(run, corpus, frozen, backend, mesh, console.print)
            step_fn = sharding.compile_step(run, backend, mesh, frozen=frozen.params)
            step_fn = fit.checked(step_fn, run, mesh, sharding.check)
            session = _open(run, out, corpus, frozen, backend, mesh, console)
            with signals.writing(console), _closing(session), session.display:
                completed = _run(session, step_fn, signals)
                outcome = _close(session, completed, signals.received, console)
    if signals.lost is not None and not completed:
        say(f"the output cannot be written any more: saved after step {outcome.step}; the same "
            "command goes on from there")
        raise signals.lost
    return outcome


@contextlib.contextmanager
def _closing(s: Session) -> Iterator[None]:
    """Let go of a session's files and threads, however the block ends."""
    with contextlib.ExitStack() as last:
        last.callback(s.writer.close)
        if s.average is not None:
            last.callback(s.average.close)
        last.callback(s.stream.close)
        last.callback(s.profiler.close)
        try:
            yield
        except BaseException:
            # Of several processes one that fails alone waits for none: a save is made by all.
            if jax.process_count() == 1:
                last.callback(s.store.close)
            raise
        s.store.close()


def _open(run: RunConfig, out: Path, corpus: Corpus, frozen: Frozen, backend: Backend,
          mesh: Mesh | None, console: Console) -> Session:
    """Start a run, or restore it."""
    store = Store(out / "checkpoints", run.output.keep, tuned.specs(run))
    stream = RowStream(
        corpus.train, seed=run.seed, host=jax.process_index(), hosts=jax.process_count()
    )
    resumed, average, loads = None, None, None
    kept = resume.kept_config(out)
    if kept is not None:
        resumed, start, average, loads = resume.restore(run, store, stream, console.print, mesh)
        for said in resume.changed(kept, run, resumed):
            console.print(said)
    else:
        start = frozen_weights.begin(run, frozen, mesh, console.print)
    if jax.process_index() == 0 and (resumed or 0) < run.train.steps:
        run_to_json(profile.once(run), out / "config.json")
    host = None
    if run.optimizer.ema_decay:
        host = HostEMA(start.params, run.optimizer.ema_decay, run.optimizer.ema_every, average)
    proof = Proof(store, resumed)
    proof.begin()
    board = out / "tensorboard" if run.output.tensorboard else None
    return Session(
        run=run,
        out=out,
        corpus=corpus,
        frozen=frozen,
        stream=stream,
        state=start,
        average=host,
        store=store,
        proof=proof,
        writer=metrics.open_writer(out / "metrics.jsonl", resumed, board, console.print,
                                   step_report.layer_labels(run)),
        display=open_display(run.name, run.train.steps, run.output.log_every, console),
        speed=pace.Throughput(),
        profiler=profile.Profiler(
            profile.chosen(run.output.profile, int(start.step), run.train.steps),
            out / "profile", console.print),
        peak=hardware.matmul_peak(hardware.OPERANDS[run.precision.matmul]),
        heldout_step=sharding.compile_heldout(run, backend, mesh),
        mesh=mesh,
        scoring=tasks.begin(run, corpus.tokenizer, backend, mesh, frozen.given(start.params)),
        window_loads=loads,
    )


def _run(s: Session, step_fn: TrainStep, signals: Signals) -> bool:
    """Take steps until done or told to stop; true when the last step was taken."""
    delayed = pace.Delayed()
    first = done = int(s.state.step)
    saved = done if s.store.latest() is not None else -1
    while done < s.run.train.steps and not signals.is_told(done):
        values, began = _step(s, step_fn, _batch(s, done), done + 1)
        if done == first:
            cpu.keep_memory()
        done += 1
        if s.average is not None:
            s.average.update(s.state.params, done)
        _report(s, delayed.push(done, values, began))
        if s.profiler.took(done, values):
            s.speed.restart()
        if _is_due(done, s.run.output.eval_every, s.run.train.steps):
            _report(s, delayed.flush())
            _evaluate(s, done)
        if s.scoring.is_due(done):
            _report(s, delayed.flush())
            s.scoring.report(s.frozen.given(s.state.params), done, s.writer, s.display, s.speed)
        if _is_due(done, s.run.output.save_every, s.run.train.steps):
            _report(s, delayed.flush())
            if not s.proof.in_row:  # what is skipped changes nothing, and may be past mending
                _save(s, done)
                saved = done
    _report(s, delayed.flush())
    if saved != done:
        _save(s, done)
    return done >= s.run.train.steps


def _step(s: Session, step_fn: TrainStep, batch: Batch,
          number: int) -> tuple[StepMetrics, float | None]:
    """Take a step; its metrics, and when it was dispatched, unless it was compiled first."""
    began = s.speed.begin(batch.tokens.shape)
    s.display.doing("compiling the step" if began is None else "")
    with s.profiler.step(number):
        s.state, values = step_fn(s.state, batch)
    s.display.doing("")
    return values, began


def _is_due(done: int, every: int, steps: int) -> bool:
    return done == steps or (every > 0 and done % every == 0)


def _batch(s: Session, done: int) -> Batch:
    """Draw this step's rows and cut them to this step's length."""
    train = s.run.train
    drawn = s.stream.next_batch(curriculum.rows_of(train, done) // jax.process_count())
    length = curriculum.length_of(train, done)
    cut = drawn if length == train.seq_len else curriculum.recut(drawn, length)
    return sharding.put_rows(cut, s.mesh)


def _report(s: Session, ready: pace.Ended | None) -> None:
    """Write and show a step's metrics; end a run whose gradients stay non-finite."""
    if ready is None:
        return
    number, m = ready.step, ready.metrics
    step_report.tick(s.speed, s.run, ready)
    if m.loads.size:
        s.window_loads = m.loads if s.window_loads is None else s.window_loads + m.loads
    values = step_report.event(s.run, number, m) | step_report.pace(s.run, s.speed, s.peak)
    if values.get("mfu", 0) > 1:
        s.peak = None
        values.pop("mfu")
        s.display.note("faster than the matrix products that were measured at the start, when this "
                       "machine was busy: no share of the peak is shown")
    s.writer.write(number, "train", values)
    eta = s.speed.eta(s.run.train.steps - number)
    s.display.update(number, step_report.shown(values)
                     | ({"eta": eta} if math.isfinite(eta) else {}))
    in_row = int(m.skipped_in_row)
    if in_row:
        s.display.note(f"step {number} skipped: its gradient is not finite")
    s.proof.stepped(number, in_row)
    if in_row >= GIVE_UP_AFTER:
        raise lost_gradients(s.proof, number, in_row)


def _evaluate(s: Session, done: int) -> Heldout:
    s.display.doing("evaluating on held-out text")
    found = _heldout(s, s.state.params, s.run.output.eval_batches)
    s.display.doing("")
    values = heldout.values(found)
    written: dict[str, Any] = dict(values)
    if s.window_loads is not None:
        written["loads"] = s.window_loads
        s.window_loads = None
    s.writer.write(done, "eval", written)
    shown = {k: v for k, v in values.items()
             if k in ("bits_per_byte", "mtp_acceptance") and math.isfinite(v)}
    s.display.update(done, shown)
    s.speed.restart()
    return found


def _heldout(s: Session, params: Any, most: int) -> Heldout:
    """Evaluate on `most` batches spread over the held-out text, or on all of it when 0."""
    host, hosts = jax.process_index(), jax.process_count()
    batches = heldout_batches(s.corpus.heldout, s.run.train.batch_size // hosts,
                              s.corpus.token_sizes, most=most, host=host, hosts=hosts)
    put = functools.partial(sharding.put_rows, mesh=s.mesh)
    found = heldout.evaluate(s.heldout_step, s.frozen.given(params), batches, put)
    if (said := heldout.remark(found)) is not None:
        s.display.note(said)
    return found


def _save(s: Session, done: int) -> None:
    """Start an asynchronous checkpoint of the state after `done` steps."""
    s.display.doing("saving a checkpoint")
    kept: dict[str, Any] = {"train": s.state}
    if s.average is not None:
        kept["ema"] = s.average.arrays()
    loads = None if s.window_loads is None else s.window_loads.tolist()
    extra = {"stream": s.stream.state(), "loads": loads} | s.corpus.extra() | s.frozen.extra()
    s.writer.sync()
    s.store.save(done, kept, extra, prune=False)
    s.proof.saved(done)
    s.display.doing("")
    s.speed.restart()


def _close(s: Session, completed: bool, received: int | None, console: Console) -> Outcome:
    """Wait for what is under way; evaluate on everything held out and draw the pictures."""
    found = average = None
    done = int(s.state.step)
    if completed:
        s.display.doing("evaluating on all held-out text")
        found = _heldout(s, s.state.params, 0)
        if found.targets and not math.isfinite(found.nll):
            raise lost_model(s.proof, done)
        if not s.proof.in_row:
            s.proof.proven()
        values = heldout.values(found)
        if s.average is not None and done >= s.average.every:  # before, it is the start values
            average = _heldout(s, s.average.arrays(), 0)
            values["bits_per_byte_average"] = average.bits_per_byte
        s.writer.write(done, "final", values)
    s.display.doing("writing the checkpoint")
    s.store.wait()
    s.display.doing("")
    if received is not None and not completed:
        name = signal.Signals(received).name
        console.print(f"{name}: saved after step {done}; the same command goes on from there")
    return Outcome(s.out, done, completed, found, average, received)
