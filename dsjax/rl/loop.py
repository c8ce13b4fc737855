"""Loop of reinforcement learning: roll out, compare, update, report, save.

Each step gives the engine the policy's weights, lets it answer fresh questions in groups, takes the
log-probabilities of its tokens by the trainer, and updates the policy by the train step of
pre-training with GRPO's loss of a token. Questions, samples and the update follow from the run's
seed, the number of the step and the state, so a run that was killed goes on with the same tokens.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from dsjax import disk
from dsjax import weights as folders
from dsjax.checkpoint.store import Store
from dsjax.config.rl import RLConfig
from dsjax.config.run import RunConfig
from dsjax.config.stored import run_to_json
from dsjax.data.tokenizers import tokenizer
from dsjax.data.tokenizers.tokenizer import Tokenizer
from dsjax.errors import UserError
from dsjax.infer.engine.engine import Engine
from dsjax.layers.backend import Backend
from dsjax.model import transformer
from dsjax.model.transformer import TransformerParams
from dsjax.report import metrics
from dsjax.report.display import Display, header, open_display
from dsjax.rl import base, display, exam, opening, rollout, state, update, weights
from dsjax.rl.exam import Exam
from dsjax.rl.rollout import Asked, Rollout
from dsjax.rl.state import RLState
from dsjax.rl.tasks import catalog, task
from dsjax.rl.tasks.task import Problem, Task
from dsjax.rl.update import Known, Score
from dsjax.rl.weights import Places
from dsjax.runtime import backend as backends
from dsjax.runtime import cpu, fit
from dsjax.terminal import Console
from dsjax.train import sharding
from dsjax.train.folder import hold, resume
from dsjax.train.signals import Signals
from dsjax.train.step import TrainStep
from dsjax.train.tokenizer import keep

EXAM_SEED = 2**30
"""Apart from seeds of steps."""


@dataclass(frozen=True)
class Outcome:
    """Result of a run."""

    out: Path
    step: int
    is_complete: bool
    base: Exam | None
    final: Exam | None
    signal: int | None = None
    was_finished: bool = False
    """Nothing was left to do: nothing was done, and the folder is as it was."""


@dataclass
class Session:
    """The moving parts of one run."""

    run: RunConfig
    """Whose steps update the policy."""
    cfg: RLConfig
    out: Path
    words: Tokenizer
    places: Places
    engine: Engine
    state: RLState
    step_fn: TrainStep
    score: Score
    task: Task
    asked: Asked
    store: Store
    writer: metrics.Writer
    shown: Display
    watch: display.Watch = dataclasses.field(default_factory=display.Watch)
    seconds: list[float] = dataclasses.field(default_factory=list)
    """Of the steps since the start, without the first, which compiles."""


def reinforce(run: RunConfig, console: Console | None = None) -> Outcome:
    """Teach a model by rewards, or go on where the folder's newest checkpoint stops.

    The model is that of `run.init_from`, or else a base that is pre-trained first, in the folder
    `base` of the run's. Raises UserError for a base whose worked solutions are wrong.
    """
    console = console or Console()
    if run.rl is None:
        raise UserError(f"the config {run.name} says nothing of reinforcement learning; give one "
                        "with rl=RLConfig(...), as r1_zero_tiny, or a flag such as --rl.task sum")
    if jax.process_count() > 1:
        raise UserError(f"rollouts are made in one process, and there are {jax.process_count()}; "
                        "start one for all devices")
    opening.refuse(run)
    out, own = resume.folder(run), update.training_run(run)
    state.refuse_another(run, out)
    if (done := state.steps_taken(out)) >= run.rl.steps:
        console.print(f"{out} holds this run finished after step {done}: there is nothing to do "
                      f"(--rl.steps above {done} would go on)")
        return Outcome(out, done, True, None, None, was_finished=True)
    places = weights.open_places(own)
    fit.refuse_training(own, places.trainer, sharding.check)
    backend = backends.for_run(own, places.trainer)
    disk.make_folder(out, "name another --output.folder")
    with disk.held(out, hold.REMEDY), Signals().listening() as signals:
        header(opening.said(run, own, backend, places, out), f"dsjax rl {run.name}", console)
        with contextlib.ExitStack() as last:
            session, found = _open(run, own, backend, places, out, last, console)
            with signals.writing(console), session.shown:
                final = _run(session, signals)
    done = session.state.done
    if signals.received is not None and final is None:
        console.print(f"{signal.Signals(signals.received).name}: saved after step {done}; the same "
                      "command goes on from there")
    return Outcome(out, done, final is not None, found, final, signals.received)


def _open(run: RunConfig, own: RunConfig, backend: Backend, places: Places, out: Path,
          last: contextlib.ExitStack, console: Console) -> tuple[Session, Exam | None]:
    """Start a run from its base, or restore it; the base's exam where one was taken."""
    cfg, saved = update.rl_of(run), Store(out / "checkpoints", run.output.keep,
                                          transformer.specs(run.model))
    last.callback(saved.close)
    kept, found = resume.kept_config(out), None
    if kept is None:
        words, params, engine, asked, found = _base(run, own, places, out, console)
        begun = state.begin(own, params, places.trainer)
        run_to_json(run, out / "config.json")
        keep(words, out, console.print)
    else:
        words = tokenizer.load(out / "tokenizer.json", end=run.data.end_token)
        begun = state.restore(own, saved, console.print, places.trainer)
        run_to_json(run, out / "config.json")
        engine = weights.open_engine(own, begun.train.params, words, places)
        asked = opening.asked_of(run, words, out)
    writer = metrics.open_writer(out / "metrics.jsonl", None if kept is None else begun.done,
                                 None, console.print)
    last.callback(writer.close)
    session = Session(
        run=own, cfg=cfg, out=out, words=words, places=places, engine=engine, state=begun,
        step_fn=sharding.compile_step(own, backend, places.trainer, update.token_loss(cfg)),
        score=update.compile_score(own, weights.score_backend(own, places), places.score),
        task=catalog.taught(cfg), asked=asked, store=saved, writer=writer,
        shown=open_display(run.name, cfg.steps, run.output.log_every, console))
    if found is not None:
        writer.write(0, "exam", display.of_exam(found))
        _pass(session)
    return session, found


def _base(run: RunConfig, own: RunConfig, places: Places, out: Path,
          console: Console) -> tuple[Tokenizer, TransformerParams, Engine, Asked, Exam]:
    """The weights to begin with, an engine of them, what it is asked, and their exam."""
    engine = None
    folder = out / "base" if run.init_from is None else Path(run.init_from)
    for steps in base.lengths(run) if run.init_from is None else [0]:
        if run.init_from is None:
            base.train(run, folder, steps, console)
        words = tokenizer.load(folder / "tokenizer.json", end=run.data.end_token)
        asked = opening.asked_of(run, words, out)
        mesh = places.trainer
        where = None if mesh is None else sharding.state_shardings(own, mesh).params
        params = folders.load(folder, "float32", where, say=console.print,
                              choice=folders.Choice(model=run.model))
        if engine is None:
            console.print("compiling the engine ...")
            engine = weights.open_engine(own, params, words, places)
        else:
            weights.exchange(engine, params, own, places.engine)
        found = _examined(engine, words, run, asked)
        console.print(base.remark(found))
        if run.init_from is not None or base.is_good(found, run):
            return words, params, engine, asked, found
    raise base.refusal(found, run, steps)


def _examined(engine: Engine, words: Tokenizer, run: RunConfig, asked: Asked) -> Exam:
    problems = catalog.examined(update.rl_of(run), run.seed)
    return exam.take(engine, words, problems, asked, run.seed + EXAM_SEED)


def _run(s: Session, signals: Signals) -> Exam | None:
    """Take steps until done or told to stop; the last exam when the last step was taken."""
    found: Exam | None = None
    first = s.state.done
    while s.state.done < s.cfg.steps and not signals.is_told(s.state.done):
        _step(s)
        if s.state.done == first + 1:
            cpu.keep_memory()
        done, is_last = s.state.done, s.state.done == s.cfg.steps
        if is_last or (s.cfg.eval_every and done % s.cfg.eval_every == 0):
            found = _exam(s)
        if is_last:
            _pass(s)
        if is_last or (s.run.output.save_every and done % s.run.output.save_every == 0):
            _save(s)
    if s.store.latest() != s.state.done:
        _save(s)
    s.store.wait()
    return found if s.state.done >= s.cfg.steps else None


def questions(s: Session, done: int) -> list[Problem]:
    """Problems of the step after `done`, which follow from seed and step alone."""
    return task.questions(s.task, s.cfg.level, (s.run.seed,), done, s.cfg.prompts)


def _step(s: Session) -> None:
    """Roll out, compare, update and report."""
    began, done = time.perf_counter(), s.state.done
    params = s.state.train.params
    weights.exchange(s.engine, params, s.run, s.places.engine)
    s.shown.doing("rolling out")
    made = rollout.roll_out(s.engine, s.words, questions(s, done), s.asked, (s.run.seed, done))
    s.shown.doing("updating")
    middle = time.perf_counter()
    found = _known(s, params, s.state.reference, made)
    told = display.values(made, found) | _updated(s, made, found)
    reference = s.state.reference
    done += 1
    if reference is not None and s.cfg.reference_every and done % s.cfg.reference_every == 0:
        reference = state.copied(s.state.train.params)
    s.state = RLState(s.state.train, reference, done)
    ended = time.perf_counter()
    s.store.wait()  # a step is reported when the one before is on disk: a kill loses one at most
    s.shown.doing("")
    told |= {"rollout_tok_s": made.mask.sum() / made.seconds,
             "train_tok_s": made.real.sum() / (ended - middle), "seconds": ended - began}
    _report(s, made, told)


def _updated(s: Session, made: Rollout, found: Known) -> dict[str, float]:
    """Update the policy by each part of a rollout; means of what the steps say."""
    told: dict[str, list[float]] = {}
    for number, (part, known) in enumerate(update.parts(made, found, s.cfg.updates)):
        now = known.old
        if number:  # the policy has moved since the rollout
            now = _known(s, s.state.train.params, None, part).old
        rows = update.rows_of(part, known, now, s.cfg)
        train, m = s.step_fn(s.state.train, sharding.put_rows(rows, s.places.trainer))
        s.state = RLState(train, s.state.reference, s.state.done)
        one: dict[str, Any] = {
            "loss": m.loss, "grad_norm": m.grad_norm, "learning_rate": m.learning_rate,
            "skipped": m.skipped, "clipped": update.clipped(part, known, now, s.cfg)}
        for name, value in one.items():
            told.setdefault(name, []).append(float(value))
    return {name: sum(values) / len(values) for name, values in told.items()}


def _known(s: Session, params: TransformerParams, reference: TransformerParams | None,
           made: Rollout) -> Known:
    """Log-probabilities by the trainer."""
    at = s.places
    behind = None if reference is None else weights.scored(reference, s.run, at)
    return update.known(s.score, weights.scored(params, s.run, at), behind, made, at.score)


def _report(s: Session, made: Rollout, told: dict[str, Any]) -> None:
    """Write a step's numbers and samples, show them, and tell of a flat run."""
    done = s.state.done
    s.writer.write(done, "train", told)
    if done % s.cfg.samples_every == 0 or done == s.cfg.steps:
        display.write_samples(s.out / "samples", done, made)
    if s.seconds or done > 1:
        s.seconds.append(told["seconds"])
    recent = s.seconds[-20:]
    left = (s.cfg.steps - done) * sum(recent) / len(recent) if recent else math.nan
    shown = {name: told[name] for name in display.SHOWN if name in told}
    s.shown.update(done, shown | ({"eta": left} if math.isfinite(left) else {}))
    for sentence in s.watch.after(done, told, made):
        s.shown.note(sentence)


def _exam(s: Session) -> Exam:
    s.shown.doing("holding an exam")
    weights.exchange(s.engine, s.state.train.params, s.run, s.places.engine)
    found = _examined(s.engine, s.words, s.run, s.asked)
    s.shown.doing("")
    s.writer.write(s.state.done, "exam", display.of_exam(found))
    s.shown.note(f"step {s.state.done}: held out {found.greedy:.3f} greedy, {found.sampled:.3f} "
                 f"sampled, {found.length:.1f} tokens, {found.long:.0%} work, worked to the "
                 f"character {found.worked:.3f}")
    return found


def _pass(s: Session) -> None:
    """Write pass@k on the held-out questions, where samples for it are asked for."""
    if not s.cfg.pass_samples:
        return
    weights.exchange(s.engine, s.state.train.params, s.run, s.places.engine)
    asked = dataclasses.replace(s.asked, samples=s.cfg.pass_samples)
    made = rollout.roll_out(s.engine, s.words, catalog.examined(s.cfg, s.run.seed), asked,
                            (s.run.seed + EXAM_SEED, 2**20 + 1))
    s.writer.write(s.state.done, "pass", exam.passes(made, sum(s.asked.rewards.values())))


def _save(s: Session) -> None:
    s.writer.sync()
    state.save(s.store, s.state, s.words, s.task)
