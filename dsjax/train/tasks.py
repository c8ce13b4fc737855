"""Public tasks as training goes on: scored by the parameters as they rest, beside held-out text.

Texts are ranked and read as `dsjax evaluate` does it; nothing is written by the model, which would
want an engine. Scores change nothing of the run.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from jax.sharding import Mesh

from dsjax.config.run import RunConfig
from dsjax.data.tokenizers.tokenizer import Tokenizer
from dsjax.errors import UserError
from dsjax.evaluate import evaluation, results, scored
from dsjax.evaluate.answers import Manner
from dsjax.evaluate.evaluation import Prepared
from dsjax.evaluate.likelihood import Scorer, Text
from dsjax.infer import Model
from dsjax.layers.backend import Backend
from dsjax.layers.remat import keep_all
from dsjax.model.transformer import TransformerParams
from dsjax.report.display import Display
from dsjax.report.metrics import Writer
from dsjax.report.pace import Throughput
from dsjax.train.tuning import partial

FLAG = "--output.tasks"


@dataclass
class Scoring:
    """The tasks of a run, and the program that scores them."""

    run: RunConfig
    prepared: list[tuple[Prepared, list[list[Text]]]]
    """Tasks, with the texts of their items."""
    scorer: Scorer | None

    def is_due(self, done: int) -> bool:
        """True after steps at which the tasks are scored."""
        return bool(self.prepared) and (
            done == self.run.train.steps or done % self.run.output.tasks_every == 0)

    def report(self, p: TransformerParams, done: int, writer: Writer, display: Display,
               speed: Throughput) -> None:
        """Score the tasks, write an event `tasks` and show it."""
        display.doing("scoring tasks")
        values = self.score(p)
        display.doing("")
        writer.write(done, "tasks", values)
        display.update(done, values)
        speed.restart()

    def score(self, p: TransformerParams) -> dict[str, float]:
        """Measures by task and name."""
        found: dict[str, float] = {}
        for own, texts in self.prepared:
            assert self.scorer is not None, "tasks have a scorer"
            self.scorer.params = p
            every = {item.index for item in own.items}
            records = {item.index: record for item, record in scored.ask(
                own.task, own.items, texts, every, self.scorer)}
            result = results.of(own.task, own.items, records)
            found |= {f"{own.task.name} {name}": one.value
                      for name, one in result.measures.items()}
        return found


def read(run: RunConfig) -> list[Prepared]:
    """Read the tasks that a run names; refuses those that the model answers in writing."""
    if run.output.tasks is None:
        return []
    tasks = evaluation.named(run.output.tasks, FLAG)
    for one in tasks:
        if one.kind == "generated":
            raise UserError(f"{FLAG} {one.name}: it is answered in writing, which is not "
                            "done while a model trains; run dsjax evaluate on the run's folder")
    try:
        return evaluation.prepare(tasks, Path(run.output.tasks_data), Manner(), 0,
                                  run.output.tasks_limit)
    except UserError as error:  # which names the flags of dsjax evaluate
        raise UserError(str(error).replace("--data ", f"{FLAG}-data ")
                        .replace("--limit ", f"{FLAG}-limit ")) from None


def begin(run: RunConfig, words: Tokenizer, backend: Backend, mesh: Mesh | None,
          p: TransformerParams) -> Scoring:
    """Read the tasks that a run names, and make the program that scores them."""
    prepared = read(run)
    if not prepared:
        return Scoring(run, [], None)
    forward = dataclasses.replace(backend, remat=keep_all, unroll=1)
    model = Model(run.model, p, words, run.train.seq_len, forward, mesh, run.parallel)
    scorer = Scorer(model, gather=lambda p: partial.used(run, backend, p))
    return Scoring(run, [(own, scored.texts_of(own.task, own.items, words, scorer.context))
                         for own in prepared], scorer)
