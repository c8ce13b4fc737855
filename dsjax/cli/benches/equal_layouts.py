"""One step of a small model on one device and on many: every number must be the same.

Compared are the loss and its parts, every gradient, the router's bias after the step, the loads
with their MaxVio, and the multi-token losses, whose targets are fewer than the next-token ones and
unequal on every device. Two kinds of rows: `packed`, several documents a row, and `unpacked`, one
document a row with padding of unequal length. A relative difference is the largest difference in a
leaf over the largest number in it.

The step's optimizer has beta1 = 0, float32 moments and no clipping, so that its first moment is the
gradient itself.

Axes: B rows, T time.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from dsjax import params
from dsjax.config.loss import LossConfig
from dsjax.config.model import MLAConfig, ModelConfig, MoEConfig
from dsjax.config.parallel import ParallelConfig
from dsjax.config.run import OptimizerConfig, RunConfig, TrainConfig
from dsjax.model import transformer
from dsjax.report import metrics
from dsjax.runtime import backend as backends
from dsjax.train import sharding
from dsjax.train.state import TrainState
from dsjax.train.step import StepMetrics

ROWS, LENGTH = 32, 12
MICROBATCHES = (1, 2, 4)
KINDS = ("packed", "unpacked")
TOLERANCE = 1e-5
"""70 roundings of float32: those of a dozen sums over 400 positions, one after the other."""

MODEL = ModelConfig(
    vocab=60,
    d_model=24,
    layers=2,
    dense_layers=1,
    dense_dim=32,
    attention=MLAConfig(heads=3, kv_rank=8, nope_dim=6, rope_dim=4, value_dim=5, q_rank=16),
    moe=MoEConfig(experts=16, experts_per_token=3, expert_dim=8, groups=4, groups_per_token=2,
                  scale=1.5),
    mtp_depth=1,
    init_std=0.2,
)
RUN = RunConfig(
    name="layouts",
    model=MODEL,
    train=TrainConfig(batch_size=ROWS, seq_len=LENGTH),
    optimizer=OptimizerConfig(beta1=0.0, clip=1e9, moments="float32"),
    loss=LossConfig(balance=0.01, bias_speed=0.01, expert_balance=0.003, device_balance=0.05,
                    communication_balance=0.02),
)


@dataclasses.dataclass(frozen=True)
class Difference:
    """Largest relative differences of one layout from one device."""

    layout: ParallelConfig
    microbatches: int
    kind: str
    loss: float  # all terms
    parts: float  # next token, each MTP depth, balance, accuracy
    gradients: float  # the worst leaf
    bias: float  # after the step
    metrics: float  # gradient norm, loads, MaxVio, targets
    extra_rounds: int

    @property
    def largest(self) -> float:
        """The worst of all."""
        return float(np.max([self.loss, self.parts, self.gradients, self.bias, self.metrics]))


def factorizations(devices: int) -> Iterator[ParallelConfig]:
    """Every data x fsdp x expert whose product is `devices`."""
    sizes = [n for n in range(1, devices + 1) if devices % n == 0]
    for data, fsdp, expert in itertools.product(sizes, repeat=3):
        if data * fsdp * expert == devices:
            yield ParallelConfig(data=data, fsdp=fsdp, expert=expert)


def rows_of(kind: str, seed: int = 0) -> dict[str, np.ndarray]:
    """Random rows: documents of unequal length, padding, and tokens that are no targets."""
    rng = np.random.default_rng(seed)
    shape = (ROWS, LENGTH + 1)
    tokens = rng.integers(0, MODEL.vocab, shape).astype(np.int32)
    at = np.arange(LENGTH + 1)[None]
    if kind == "packed":
        ends = np.sort(rng.integers(1, LENGTH, (ROWS, 2)), axis=1)
        segments = 1 + (at[None] >= ends.T[:, :, None]).sum(0)
    else:
        segments = (at < rng.integers(0, LENGTH + 2, (ROWS, 1))).astype(int)
    weights = (rng.random(shape) < 0.8).astype(np.float32)
    return {"tokens": tokens, "segments": segments.astype(np.int32), "weights": weights}


def configured(layout: ParallelConfig, microbatches: int, base: RunConfig = RUN) -> RunConfig:
    """The run of this comparison on a layout."""
    train = dataclasses.replace(base.train, microbatches=microbatches)
    return dataclasses.replace(base, train=train, parallel=layout)


@functools.cache
def start(model: ModelConfig = MODEL) -> TrainState:
    """The start state on the host; biases are drawn, as a bias of zero would hide a lost one."""
    state = jax.device_get(sharding.init(dataclasses.replace(RUN, model=model), None))
    rng = np.random.default_rng(1)

    def drawn(spec: params.Spec, leaf: np.ndarray) -> np.ndarray:
        is_bias = spec.role == "router_bias"
        return rng.normal(0, 0.05, leaf.shape).astype(np.float32) if is_bias else leaf

    return state.replace(params=jax.tree.map(drawn, transformer.specs(model), state.params,
                                             is_leaf=params.is_spec))


class Stepper:
    """One compiled step; gives what a batch makes of the same start state."""

    def __init__(self, layout: ParallelConfig, microbatches: int = 1,
                 base: RunConfig | None = None) -> None:
        self.run = configured(layout, microbatches, base or RUN)
        self.mesh = sharding.open_mesh(self.run)
        backend = backends.for_run(self.run, self.mesh)
        self._step = sharding.compile_step(self.run, backend, self.mesh)

    def take(self, kind: str) -> tuple[TrainState, StepMetrics]:
        """One step on rows of a kind, fetched to the host."""
        return self.step(rows_of(kind))

    def step(self, rows: dict[str, np.ndarray]) -> tuple[TrainState, StepMetrics]:
        """One step on rows, from the start state, fetched to the host."""
        where = None if self.mesh is None else sharding.state_shardings(self.run, self.mesh)
        batch = sharding.put_rows(rows, self.mesh)
        begun = jax.device_put(start(self.run.model), where)
        return jax.device_get(self._step(begun, batch))


def compare(layout: ParallelConfig, microbatches: int, kind: str, step: Stepper,
            alone: tuple[TrainState, StepMetrics]) -> Difference:
    """Return the differences of a step on a layout from the one of a single device."""
    (state, m), (wanted_state, wanted) = step.take(kind), alone
    names = dict(params.paths(state.params))
    bias = [name for name, spec in params.paths(transformer.specs(MODEL))
            if spec.role == "router_bias"]
    assert bias, "the model has routers with a bias"
    wanted_names = dict(params.paths(wanted_state.params))
    loads = [(metrics.max_violation(np.asarray(x.loads)), x.loads) for x in (m, wanted)]
    return Difference(
        layout=layout,
        microbatches=microbatches,
        kind=kind,
        loss=_relative(m.loss, wanted.loss),
        parts=_relative(*((step.next_token, step.accuracy, step.mtp, step.mtp_accuracy,
                           step.balance) for step in (m, wanted))),
        gradients=_relative(state.opt.mu, wanted_state.opt.mu),
        bias=_relative([names[n] for n in bias], [wanted_names[n] for n in bias]),
        metrics=_relative((m.grad_norm, m.targets, loads[0]),
                          (wanted.grad_norm, wanted.targets, loads[1])),
        extra_rounds=int(m.extra_rounds),
    )


def _relative(got: Any, wanted: Any) -> float:
    """The worst leaf's largest difference over its largest number; NaN where one is."""
    pairs = zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True)
    return float(np.max([np.abs(np.subtract(a, b)).max() / max(float(np.abs(b).max()), 1e-30)
                         for a, b in pairs]))


def compare_all(devices: int) -> Iterator[tuple[ParallelConfig, list[Difference]]]:
    """Every factorization, with each count of microbatches and kind of rows, against one device."""
    single_step = Stepper(ParallelConfig())
    alone = {kind: single_step.take(kind) for kind in KINDS}
    for layout in factorizations(devices):
        found = []
        for microbatches in MICROBATCHES:
            step = Stepper(layout, microbatches)
            found += [compare(layout, microbatches, kind, step, alone[kind]) for kind in KINDS]
        yield layout, found
