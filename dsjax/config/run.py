"""A run: the model, what it learns from, how it is optimized, and where and how it happens.

`model`, `loss`, `data`, `optimizer`, `seed` and what is tuned are a run's identity: it resumes only
with those in its folder's config.json, where a field added since has its default. `train`,
`learning_rate` and `precision` may be changed on resume by one who means it (more steps, another
rate, other microbatches). `parallel`, `machine` and `output` never change what is computed.
`init_from` is read once, where there is no checkpoint yet, and again for weights that rest.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from dsjax.config.fields import between, choices, counted, profiled, seed_in_range, well_typed
from dsjax.config.loss import LossConfig
from dsjax.config.machine import MachineConfig
from dsjax.config.model import ModelConfig
from dsjax.config.parallel import ParallelConfig
from dsjax.config.rl import RLConfig
from dsjax.config.schedule import LearningRate, StepDecay, steps_or_share
from dsjax.config.sft import ExpertsConfig, LoRAConfig, SFTConfig


@dataclass(frozen=True)
class DataConfig:
    """Sources of text: paths of text, JSONL, compressed files, globs, or prepared shards."""

    train: str | None = None
    """Source of training documents; None is the embedded corpus, Shakespeare's works."""
    heldout: str | None = None
    """Source of held-out documents; None holds out blocks of the training source."""
    heldout_fraction: float = 0.03
    """Share of the training source that is held out when `heldout` is None."""
    tokenizer: str | None = None
    """A tokenizer.json; None takes that of `init_from`, or else trains a byte-level BPE of the
    model's vocabulary size."""
    end_token: str | None = None
    """Name of the tokenizer's token that ends documents, where no file beside it names it."""
    packing: Literal["concat", "segments"] = "concat"
    """`concat` lets attention cross documents, as V3 trained; `segments` does not."""
    fim_rate: float = 0.0
    """Share of documents turned into fill-in-the-middle form (V3 0.1)."""

    def __post_init__(self) -> None:
        """Refuse shares outside [0, 1)."""
        well_typed(self)
        for name in ("heldout_fraction", "fim_rate"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(
                    f"DataConfig.{name}={getattr(self, name)} is a share; use 0 up to below 1"
                )


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW as V3 runs it (V3 report sec. 4.2)."""

    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    """Undisclosed for V3; V4 states 1e-20."""
    weight_decay: float = 0.1
    """On matrices only."""
    clip: float = 1.0
    """Global gradient norm above which gradients are scaled down."""
    moments: Literal["bfloat16", "float32"] = "bfloat16"
    """Dtype both moments are kept in."""
    ema_decay: float = 0.0
    """Decay a step of the parameters' average, kept on the host; 0 keeps none."""
    ema_every: int = 10
    """Steps between updates of the average, each with the decay of as many steps."""

    def __post_init__(self) -> None:
        """Refuse decays outside [0, 1)."""
        well_typed(self)
        for name in ("beta1", "beta2", "ema_decay"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(
                    f"OptimizerConfig.{name}={getattr(self, name)} must be from 0 to below 1; "
                    "the default is a good start"
                )
        for name in ("eps", "clip", "ema_every"):
            if not getattr(self, name) > 0:
                raise ValueError(
                    f"OptimizerConfig.{name}={getattr(self, name)} must be above 0; "
                    "the default is a good start"
                )
        if not self.weight_decay >= 0:
            raise ValueError(
                f"OptimizerConfig.weight_decay={self.weight_decay} is negative; use 0 for none"
            )
        # Below, a gradient whose square float32 holds as 0 makes a step of any size.
        between(self, "eps", 1e-20, 1.0, "1e-8 is usual, and V4 states 1e-20")
        between(self, "clip", 1e-6, 1e30, "V3 uses 1.0")


@dataclass(frozen=True)
class SequenceStage:
    """From `from_step` on, rows are cut to `seq_len` tokens; tokens a step stay the same.

    Below 1, `from_step` is a share of the run's steps.
    """

    from_step: float
    seq_len: int

    def __post_init__(self) -> None:
        """Refuse rows of nothing and stages before the first step."""
        well_typed(self)
        if self.seq_len < 1 or self.from_step < 0:
            raise ValueError(
                f"curriculum stage {self.from_step}:{self.seq_len} needs a step from 0 and a "
                "seq_len of at least 1"
            )
        counted("SequenceStage", 0, seq_len=self.seq_len)
        steps_or_share(self, "from_step")


@dataclass(frozen=True)
class TrainConfig:
    """Length of a run, and the size of its batches."""

    steps: int = 1000
    """Optimizer steps."""
    batch_size: int = 8
    """Rows a step once the batch-size ramp is over."""
    seq_len: int = 256
    """Tokens a row."""
    batch_size_start: int | None = None
    """Rows a step at the start of the ramp; None starts at `batch_size` (V3: 3072 to 15360)."""
    batch_size_ramp_steps: float = 0
    """Steps the ramp lasts; below 1, their share of the run."""
    batch_size_multiple: int = 1
    """The ramp grows in multiples of this."""
    curriculum: tuple[SequenceStage, ...] = ()
    """Shorter rows at first; the step is compiled again only where the length changes."""
    microbatches: int = 1
    """Parts whose gradients are added up before an update."""

    def __post_init__(self) -> None:
        """Refuse batches that do not divide into microbatches, and rows that do not cut."""
        well_typed(self)
        for name in ("steps", "batch_size", "seq_len", "microbatches", "batch_size_multiple"):
            counted("TrainConfig", **{name: getattr(self, name)})
        steps_or_share(self, "batch_size_ramp_steps")
        if self.batch_size % self.microbatches:
            raise ValueError(
                f"TrainConfig.batch_size={self.batch_size} is not divisible by "
                f"microbatches={self.microbatches}; "
                f"choose microbatches from {choices(self.batch_size, self.microbatches)}"
            )
        for stage in self.curriculum:
            if self.seq_len % stage.seq_len:
                raise ValueError(
                    f"TrainConfig.seq_len={self.seq_len} is not a multiple of the curriculum's "
                    f"{stage.seq_len}; "
                    f"choose a divisor of {self.seq_len}"
                )
        if self.batch_size_start is not None and not 1 <= self.batch_size_start <= self.batch_size:
            raise ValueError(
                f"TrainConfig.batch_size_start={self.batch_size_start} is not between 1 and "
                f"batch_size={self.batch_size}; start with fewer rows, or leave the ramp out"
            )
        ends = () if self.batch_size_start is None else (self.batch_size_start, self.batch_size)
        if any(rows % self.batch_size_multiple for rows in ends):
            raise ValueError(
                f"TrainConfig.batch_size_multiple={self.batch_size_multiple} does not divide "
                f"batch_size_start={self.batch_size_start} and batch_size={self.batch_size}; "
                "choose a common divisor"
            )
        ramp = (self.batch_size_start, self.batch_size_multiple) if self.batch_size_start else ()
        for rows in ramp:
            if rows % self.microbatches:
                raise ValueError(
                    f"TrainConfig.microbatches={self.microbatches} does not divide the {rows} rows "
                    "of a step or of the batch ramp's growth; choose a divisor"
                )


@dataclass(frozen=True)
class PrecisionConfig:
    """In what numbers a model is computed; sums, norms, softmax and losses are float32 always."""

    matmul: Literal["fp32", "tf32", "bf16", "fp8"] = "fp32"
    """Operands of the matrix products of every Linear and expert (V3: fp8). `tf32`: float32
    operands, multiplied as the machine is fastest (TF32 on a GPU, one pass of bfloat16 on a
    TPU)."""
    activations: Literal["float32", "bfloat16"] = "float32"
    """Dtype of the residual stream and of what is saved for the backward pass."""

    def __post_init__(self) -> None:
        """Refuse names of no format."""
        well_typed(self)

    @property
    def operand_bytes(self) -> int:
        """Bytes of a number that products multiply, beside its tile's scale."""
        return {"fp32": 4, "tf32": 4, "bf16": 2, "fp8": 1}[self.matmul]


@dataclass(frozen=True)
class OutputConfig:
    """Folder of a run, and how often it evaluates, saves and reports."""

    folder: str | None = None
    """Folder of the run; None is runs/NAME."""
    resume: bool = True
    """Continue from the newest checkpoint of `folder` when there is one."""
    eval_every: int = 100
    """Steps between held-out evaluations; 0 evaluates only after the last step."""
    eval_batches: int = 8
    """Held-out batches an evaluation reads, spread over the held-out text; 0 reads all, as does the
    evaluation after the last step."""
    tasks: str | None = None
    """Tasks of dsjax evaluate to score on the way, with commas between them, of those that rank or
    read text: arc, hellaswag, lambada, mmlu, text."""
    tasks_data: str = "data/eval"
    """Folder of the tasks' files."""
    tasks_every: int = 500
    """Steps between scores of tasks; the last step has them too."""
    tasks_limit: int = 100
    """Items of each task, of each subject of mmlu."""
    save_every: int = 200
    """Steps between checkpoints; 0 saves only after the last step."""
    keep: int = 3
    """Checkpoints kept."""
    log_every: int = 10
    """Steps between plain lines when the output is not a terminal."""
    tensorboard: bool = False
    """Also write TensorBoard event files."""
    profile: str | None = None
    """Steps to trace for Perfetto or TensorBoard: a number of them, as 3, or the first and the
    last, as 10:13."""

    def __post_init__(self) -> None:
        """Refuse counts that mean nothing."""
        well_typed(self)
        counted("OutputConfig", keep=self.keep, log_every=self.log_every,
                tasks_every=self.tasks_every, tasks_limit=self.tasks_limit)
        for name in ("eval_every", "eval_batches", "save_every"):
            if getattr(self, name) < 0:
                zero = "reads all" if name == "eval_batches" else "waits for the last step"
                raise ValueError(f"OutputConfig.{name}={getattr(self, name)} must be at least 0; 0 "
                                 f"{zero}")
        if self.profile is not None:
            profiled(self.profile)


@dataclass(frozen=True)
class RunConfig:
    """Everything about one run; a file in configs/ returns one."""

    name: str
    """Short name; the default folder is runs/NAME."""
    model: ModelConfig
    train: TrainConfig = field(default_factory=TrainConfig)
    learning_rate: LearningRate | StepDecay = field(default_factory=LearningRate)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    data: DataConfig = field(default_factory=DataConfig)
    precision: PrecisionConfig = field(default_factory=PrecisionConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    machine: MachineConfig = field(default_factory=MachineConfig)
    output: OutputConfig = field(default_factory=OutputConfig)
    seed: int = 0
    """Seed of start values, data order and tokenizer training."""
    init_from: str | None = None
    """Folder of a run, e.g. one made by dsjax convert, whose newest parameters and tokenizer this
    one starts from; None draws them."""
    rl: RLConfig | None = None
    """Reinforcement learning of what this run trains, by dsjax rl; None has none."""
    sft: SFTConfig | None = None
    """Examples to learn from instead of text, by dsjax sft; None has none."""
    lora: LoRAConfig | None = None
    """Low-rank adapters that learn while the weights of `init_from` rest; None has none."""
    experts: ExpertsConfig | None = None
    """Routed experts that learn while all other weights of `init_from` rest; None has none."""

    def __post_init__(self) -> None:
        """Refuse a name that is no folder's, and seeds that some random generator does not take."""
        well_typed(self)
        if self.name in (".", "..") or "/" in self.name:
            raise ValueError(f"RunConfig.name={self.name!r} is not a folder's name; use a word")
        seed_in_range(self.seed, "RunConfig.seed=")


def with_fields(run: RunConfig, **parts: Mapping[str, Any]) -> RunConfig:
    """Replace fields of a run's parts, as in with_fields(run, train={"steps": 9})."""
    return dataclasses.replace(run, **{
        part: dataclasses.replace(getattr(run, part), **fields) for part, fields in parts.items()})


IDENTITY = ("model", "data", "optimizer", "loss", "seed", "sft", "lora", "experts")
"""The parts of a run that its checkpoints depend on."""
CHANGEABLE = ("train", "learning_rate", "precision", "parallel", "machine", "output")
"""The parts that may be changed on resume, which is said."""


def difference(there: object, here: object, name: str) -> str | None:
    """The first field in which two configs differ, as `name.field=1, not 2`; None for equals."""
    if there == here:
        return None
    if type(there) is not type(here) or not dataclasses.is_dataclass(there):
        there, here = (
            type(part).__name__ if dataclasses.is_dataclass(part) else repr(part)
            for part in (there, here)
        )
        return f"{name}={there}, not {here}"
    found = (
        difference(getattr(there, f.name), getattr(here, f.name), f"{name}.{f.name}")
        for f in dataclasses.fields(there)
    )
    return next(said for said in found if said is not None)


def changes(there: object, here: object, name: str) -> list[str]:
    """Every field in which two configs differ, as `name.field 1 -> 2`."""
    if there == here:
        return []
    if type(there) is type(here) and dataclasses.is_dataclass(there):
        return [said for f in dataclasses.fields(there) for said in changes(
            getattr(there, f.name), getattr(here, f.name), f"{name}.{f.name}")]
    one, other = (type(part).__name__ if dataclasses.is_dataclass(part) else part
                  for part in (there, here))
    return [f"{name} {one} -> {other}"]
