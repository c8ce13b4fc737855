"""`dsjax evaluate FOLDER --tasks a,b`: what a model scores on public tasks, and on what luck."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from dsjax import disk
from dsjax.cli.process import context, engines, models, progress
from dsjax.cli.process.engines import EngineFlags
from dsjax.cli.process.models import ModelFlags
from dsjax.config.fields import seed_in_range
from dsjax.config.flags.flag_tree import Mark, Word
from dsjax.config.flags.refusal import typed_as
from dsjax.disk import to_json
from dsjax.errors import UserError, say

if TYPE_CHECKING:  # jax costs a second to import
    from dsjax.evaluate.answers import Manner
    from dsjax.evaluate.evaluation import Prepared
    from dsjax.infer import Model

R1 = {"temperature": 0.6, "top_p": 0.95, "max_new_tokens": 32_768, "samples": 4}
"""DeepSeek-R1's sampling; its reports take 4 to 64 samples, fewer for larger tasks."""


@dataclass(frozen=True)
class Evaluate:
    """Evaluate the newest checkpoint of a run, or a released one, on local files of public tasks.

      dsjax evaluate runs/demo --tasks arc,hellaswag,lambada --data data/eval
      dsjax evaluate runs/demo --tasks mmlu --shots 5 --limit 20
      dsjax evaluate runs/demo --tasks gsm8k --samples 8 --temperature 0.6
      dsjax evaluate runs/demo --tasks humaneval,mbpp --allow-code
      dsjax evaluate DeepSeek-R1 --tasks math500 --preset r1 --parallel.expert 8

    Tasks: gsm8k, math500, humaneval, mbpp, mmlu, arc, hellaswag, lambada; arc_easy,
    math500_minerva, math500_boxed; text. They are asked as lm-evaluation-harness 0.4.13 asks them.
    Started again, it goes on with the items that are not answered yet.
    """

    folder: Annotated[str, Word("FOLDER")]
    """Folder that `dsjax train` or `dsjax demo` wrote, or a released checkpoint."""
    tasks: str
    """Names of tasks, with commas between them."""
    data: Path = Path("data/eval")
    """Folder of the tasks' files, JSONL (also .gz, .xz, .zst) or parquet; nothing is fetched."""
    out: Path | None = None
    """Folder for a log of every item and results.json; by default `evaluate` in the run's folder,
    or runs/NAME/evaluate for a released checkpoint."""
    limit: int | None = None
    """Items of each task at most, of each subject of MMLU; by default all."""
    shots: int | None = None
    """Examples before each question; by default each task's own number."""
    preset: Literal["r1"] | None = None
    """DeepSeek-R1's protocol for tasks that are answered in writing: temperature 0.6, top-p 0.95,
    32,768 new tokens, 4 samples, math500 asked for a box, the checkpoint's chat template if it has
    one. Flags that are given count before it."""
    temperature: float | None = None
    """Of answers; by default 0, greedy."""
    top_p: float | None = None
    """Choose among the smallest set of likeliest tokens that has this much of the mass."""
    max_new_tokens: int | None = None
    """Tokens of an answer at most; by default each task's own number."""
    samples: int | None = None
    """Answers to each item; with several come pass@k, and cons@k of what most of them say."""
    seed: int = 0
    """Seed of the answers."""
    chat: bool = False
    """Ask for answers through the checkpoint's chat template, as a user's message."""
    allow_code: bool = False
    """Run programs that the model writes, behind walls; humaneval and mbpp want it."""
    engine: Annotated[EngineFlags, Mark.INLINE] = field(default_factory=EngineFlags)
    model: Annotated[ModelFlags, Mark.INLINE] = field(default_factory=ModelFlags)
    json: bool = False
    """Print results as one JSON object instead of a table."""
    cache: bool = True
    """Keep compiled programs in a cache folder of yours, so that the next start is faster."""


def main(args: Evaluate) -> int:
    """Run the command; returns the exit status."""
    seed_in_range(args.seed, "--seed ")
    models.find_devices(args.model)
    prepared = _prepared(args)
    out = _out(args)
    disk.try_folder(out, "name another --out")
    model = models.load(args.folder, args.model)
    context.say_if_beyond(model, args.engine.context)
    _evaluate(args, prepared, model, out)
    return 0


def _prepared(args: Evaluate) -> list[Prepared]:
    """Tasks with their questions; all that is wrong with them is refused before a weight is read.
    """
    from dsjax.evaluate import evaluation

    tasks = evaluation.named(args.tasks)
    if args.preset == "r1":
        tasks = [evaluation.TASKS["math500_boxed"] if one.name == "math500" else one
                 for one in tasks]
    code = [one.name for one in tasks if one.generation is not None and one.generation.is_code]
    if code and not args.allow_code:
        raise UserError(f"{' and '.join(code)} run{'s' * (len(code) == 1)} programs that the model "
                        "writes; allow it with --allow-code, or leave the task out")
    return evaluation.prepare(tasks, args.data, _manner(args), args.shots, args.limit)


def _manner(args: Evaluate) -> Manner:
    """Sampling of answers by the flags, else the preset's, else greedily."""
    from dsjax.evaluate.answers import Manner

    preset = R1 if args.preset == "r1" else {}
    given = {name: getattr(args, name) for name in R1 if getattr(args, name) is not None}
    with typed_as("temperature", "top_p", "max_new_tokens"):
        return Manner(**(preset | given), seed=args.seed)


def _out(args: Evaluate) -> Path:
    """The folder for results."""
    from dsjax import weights

    if args.out is not None:
        return args.out
    folder = Path(args.folder)
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder; {weights.REMEDY}")
    if weights.is_released(folder):
        return Path("runs") / (folder.resolve().name or "model") / "evaluate"
    return folder / "evaluate"


def _evaluate(args: Evaluate, prepared: list[Prepared], model: Model, out: Path) -> None:
    """Ask everything, and show what came of it."""
    from dsjax.evaluate import evaluation, identity, results
    from dsjax.evaluate.evaluation import Asking
    from dsjax.terminal import Console

    is_chat, encode = _encoder(args, model)
    others: dict[str, Any] = {
        "precision": model.backend.precision.name,
        "context": args.engine.context or model.context,
        "chat": is_chat, "draft": args.engine.draft, "page_dtype": args.engine.page_dtype}
    with progress.bar() as tell:
        loads = args.model.experts.expert_loads
        asking = Asking(model, lambda: engines.make(model, args.engine, loads), encode,
                        lambda sentence: say(f"dsjax: {sentence}"), tell,
                        args.engine.context)
        found = evaluation.evaluate(prepared, asking, out, identity.of(args.folder, model), others)
    if "engine" in vars(asking):
        engines.save_loads(asking.engine, args.engine)
    if args.json:
        print(to_json({one.task.name: one.as_json() for one in found}))
        return
    console = Console()
    console.print_whole(results.table(found))
    console.print(f"  {out / 'results.json'}")


def _encoder(args: Evaluate, model: Model) -> tuple[bool, Callable[[str], list[int]]]:
    """Ids of a prompt that is to be answered, and whether they come from a chat template."""
    from dsjax.serve import template
    from dsjax.serve.refusal import Refusal

    words = model.tokenizer
    if not args.chat and args.preset is None:
        return False, words.prompt
    found = template.load(args.folder, words)
    if found is None:
        if args.chat:
            raise UserError(f"{args.folder} has no chat template; leave --chat out")
        say(f"dsjax: {args.folder} has no chat template, so questions are asked as plain text")
        return False, words.prompt

    def asked(text: str) -> list[int]:
        try:
            return found.prompt([{"role": "user", "content": text}]).ids
        except Refusal as refusal:
            raise UserError(f"the chat template of {args.folder} takes no question: "
                            f"{refusal.message}; mend it, or leave --chat and --preset "
                            "out") from None

    return True, asked
