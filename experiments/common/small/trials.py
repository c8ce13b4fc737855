"""Arms x seeds of small runs: equal batches for all, one compiled program an arm, a record each.

All seeds of an arm share its program and all arms one tokenizer and one text; a seed draws start
values and the order of rows. What a seed gave is kept in `runs/` at once, so a killed command goes
on at the next seed; when an arm's last seed is done, its record is written. CPU seconds are of this
process, whatever else the machine does; they leave compiling out.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from dsjax.config.run import DataConfig, OutputConfig, RunConfig, TrainConfig
from dsjax.data import curriculum, sources
from dsjax.data.loader import RowStream, heldout_batches
from dsjax.disk import write_whole
from dsjax.evaluate import heldout
from dsjax.model import count
from dsjax.model.loss import from_rows
from dsjax.optim.ema import HostEMA
from dsjax.report import metrics
from dsjax.runtime import backend as backends
from dsjax.runtime import compiler
from dsjax.train import corpus, sharding, state, step
from dsjax.train.corpus import Corpus
from dsjax.train.step import Gradients, gradients
from experiments.common import arms, command, record
from experiments.common.command import Asked
from experiments.common.small import config

SEEDS = (0, 1, 2)
LAST = 0.25
"""Share of a run over which loads of experts are summed at its end."""


@dataclass(frozen=True)
class Trial:
    """An arm: its name, what it changes in words, its run, and its gradients if unusual."""

    name: str
    change: str
    run: RunConfig
    differentiate: Gradients = gradients


@dataclass
class Trained:
    """A run at its end, for what a study measures beside the losses."""

    run: RunConfig
    params: Any
    text: Corpus
    seed: int


Measure = Callable[[Trained], dict[str, Any]]
"""Question of a study to every trained run: named numbers for its record."""


def nothing(of: Trained) -> dict[str, Any]:
    """Measure nothing more."""
    return {}


def quick(of: Sequence[Trial], steps: int = 3) -> list[Trial]:
    """The first arm for a few steps of two short rows of one play: its numbers mean nothing.

    Its rate is that of all studies, so that those whose first arm is the same share a program.
    """
    run, play = of[0].run, command.QUICK / "play.txt"
    if not play.is_file():
        play.parent.mkdir(parents=True, exist_ok=True)
        play.write_text(next(iter(sources.documents([sources.EMBEDDED])))[:60_000])
    train = TrainConfig(steps=steps, batch_size=2, seq_len=32)
    output = dataclasses.replace(run.output, eval_every=2, eval_batches=2)
    return [dataclasses.replace(of[0], run=dataclasses.replace(
        run, train=train, output=output, data=DataConfig(train=str(play)),
        learning_rate=config.RATE))]


def train_all(of: Sequence[Trial], asked: Asked, measure: Measure = nothing) -> list[dict]:
    """The records of all arms, in their order; trains those that have none of their config."""
    seeds = SEEDS[:1] if asked.is_quick else SEEDS
    found = []
    for number, trial in enumerate(of, 1):
        path, plain = asked.records / f"arm-{trial.name}.json", arms.plain(trial.run)
        if path.is_file():
            kept = json.loads(path.read_text())
            if (said := arms.changed(kept["config"], plain, "run")) is not None:
                raise ValueError(f"{path} records {said}; remove it to measure anew")
            found.append(kept)
            continue
        of_seeds = _seeds(trial, seeds, asked, measure)
        made = {"claim": trial.change, "arm": trial.name, "seeds": list(seeds),
                "parameters": count.count(trial.run.model, trial.run.train.seq_len).params_total,
                "flops_a_token": count.training_flops(trial.run.model, trial.run.train.seq_len),
                "of_seeds": of_seeds, "config": plain}
        made |= record.environment(asked.command, asked.began)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps(made) + "\n")
        print(f"arm {number} of {len(of)}: {trial.name} is recorded", flush=True)
        found.append(made)
        if not asked.is_quick:
            jax.clear_caches()
    return found


def _seeds(trial: Trial, seeds: Sequence[int], asked: Asked,
           measure: Measure) -> list[dict[str, Any]]:
    """Results of the seeds; those that were done before are read."""
    programs = None
    found = []
    for seed in seeds:
        kept = asked.runs / f"{trial.name}-seed{seed}.json"
        if kept.is_file():
            there = json.loads(kept.read_text())
            if there["config"] == arms.plain(trial.run):
                found.append(there["found"])
                continue
        programs = programs or _compiled(trial)
        one = _train(trial, seed, programs, asked.runs, measure)
        kept.parent.mkdir(parents=True, exist_ok=True)
        write_whole(kept, json.dumps({"config": arms.plain(trial.run), "found": one}))
        found.append(one)
        print(f"{trial.name} seed {seed}: {one['nats']:.4f} nats held out, "
              f"{one['cpu_seconds']:.0f} CPU seconds", file=sys.stderr, flush=True)
    return found


_programs: dict[str, tuple[Any, Any, Any]] = {}


def _compiled(trial: Trial) -> tuple[Any, Any, Any]:
    """The jitted start, step and held-out step of an arm; the last one's are kept."""
    run = trial.run
    made_of = dataclasses.replace(
        run, name="any", data=DataConfig(), output=OutputConfig(),
        optimizer=dataclasses.replace(run.optimizer, ema_decay=0.0, ema_every=1),
        train=TrainConfig(steps=run.train.steps))
    key = f"{made_of}{trial.differentiate}"
    if key not in _programs:
        _programs.clear()
        backend = backends.for_run(run)
        take = step.make_train_step(run, backend, differentiate=trial.differentiate)
        _programs[key] = (
            jax.jit(functools.partial(state.init, run)),
            jax.jit(take, donate_argnums=0, compiler_options=compiler.here() or None),
            sharding.compile_heldout(run, backend, None))
    return _programs[key]


_texts: dict[tuple[int, int, str | None], Corpus] = {}


def text_of(run: RunConfig, runs: Path) -> Corpus:
    """Rows and tokenizer of a run: the same for all arms and seeds whose rows are as long."""
    key = (run.train.seq_len, run.model.vocab, run.data.train)
    if key not in _texts:
        train = TrainConfig(steps=1, batch_size=1, seq_len=run.train.seq_len)
        plain = RunConfig(name="text", train=train, data=run.data,
                          model=dataclasses.replace(run.model, mtp_depth=0))
        _texts[key] = corpus.prepare(plain, runs / "text", lambda sentence: None)
    return _texts[key]


def _train(trial: Trial, seed: int, programs: tuple[Any, Any, Any], runs: Path,
           measure: Measure) -> dict[str, Any]:
    """Train a seed: held-out and training losses, loads, CPU seconds, what the study measures."""
    run, (start, take, heldout_step) = trial.run, programs
    words = text_of(run, runs)
    stream = RowStream(words.train, seed=seed, is_prefetching=False)
    held = start(jax.random.key(seed))
    average = HostEMA(held.params, run.optimizer.ema_decay,
                      run.optimizer.ema_every) if run.optimizer.ema_decay else None

    def nats(params: Any) -> heldout.Heldout:
        batches = heldout_batches(words.heldout, 8, words.token_sizes,
                                  most=run.output.eval_batches)
        return heldout.evaluate(heldout_step, params, batches)

    curve, losses, loads, violations = {}, [], None, []
    used = [0.0, 0.0]
    compiled_for: set[tuple[int, ...]] = set()
    for done in range(run.train.steps):
        batch = stream.next_batch(curriculum.rows_of(run.train, done))
        length = curriculum.length_of(run.train, done)
        if length != run.train.seq_len:
            batch = curriculum.recut(batch, length)
        shape = batch["tokens"].shape
        before = time.process_time(), time.perf_counter()
        held, found = take(held, from_rows(batch))
        losses.append(float(found.next_token))
        if shape in compiled_for:
            used = [used[0] + time.process_time() - before[0],
                    used[1] + time.perf_counter() - before[1]]
        compiled_for.add(shape)
        if average is not None:
            average.update(held.params, done + 1)
        if found.loads.size and done >= int((1 - LAST) * run.train.steps):
            now = np.asarray(found.loads, np.float64)
            violations.append(metrics.max_violation(now).mean())
            loads = now if loads is None else loads + now
        if done + 1 < run.train.steps and (done + 1) % run.output.eval_every == 0:
            curve[str(done + 1)] = round(nats(held.params).nll, 5)
    last = nats(held.params)
    curve[str(run.train.steps)] = round(last.nll, 5)
    scale = run.train.steps / max(run.train.steps - len(compiled_for), 1)
    made: dict[str, Any] = {
        "nats": round(last.nll, 5), "bits_per_byte": round(last.bits_per_byte, 5),
        "curve": curve, "losses": [round(one, 4) for one in losses],
        "tokens": curriculum.tokens_after(run.train, run.train.steps),
        "skipped": int(held.skipped),
        "cpu_seconds": round(used[0] * scale, 2), "wall_seconds": round(used[1] * scale, 2),
    }
    if last.acceptance:
        made |= {"mtp_nats": [round(v, 5) for v in last.mtp_nll],
                 "acceptance": [round(v, 5) for v in last.acceptance]}
    if average is not None:
        made["nats_average"] = round(nats(average.arrays()).nll, 5)
        average.close()
    if loads is not None:
        made |= {"max_violation": round(float(metrics.max_violation(loads).mean()), 4),
                 "max_violation_step": round(float(np.mean(violations)), 4),
                 "dead": metrics.dead_experts(loads),
                 "starved": int((loads < 0.1 * loads.mean(-1, keepdims=True)).sum()),
                 "experts": int(loads.size)}
    return made | measure(Trained(run, held.params, words, seed))
