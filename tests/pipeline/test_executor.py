"""A pipeline computes what one device computes on the same microbatches, whatever its schedule.

What it defends against: an activation read from the wrong place, a gradient counted twice where two
ranks hold a stage, a bias moved by a rank's loads alone, losses averaged over microbatches with
unequal numbers of targets. Gradients are compared leaf by leaf, relative to the leaf's largest
number. The work that each rank did is compared with the table's.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsjax import params
from dsjax.config.loss import LossConfig
from dsjax.config.machine import MachineConfig
from dsjax.config.model import MLAConfig, ModelConfig, MoEConfig
from dsjax.config.parallel import ParallelConfig
from dsjax.config.run import PrecisionConfig, RunConfig, TrainConfig
from dsjax.layers.backend import single
from dsjax.layers.remat import policy
from dsjax.model import loss as losses
from dsjax.model import transformer
from dsjax.numerics import gemm
from dsjax.numerics import precision as numerics
from dsjax.ops import attention
from dsjax.parallel import mesh, mesh_backend
from dsjax.parallel.mesh import AXES, PIPE
from dsjax.pipeline import executor
from dsjax.pipeline.instructions import compile_table
from dsjax.pipeline.schedules.build import NAMES, build, latest, lockstep
from dsjax.runtime.backend import for_rank
from dsjax.train import step

MODEL = ModelConfig(
    vocab=61, d_model=32, layers=3, dense_layers=1, dense_dim=40,
    attention=MLAConfig(heads=3, kv_rank=8, nope_dim=6, rope_dim=4, value_dim=5, q_rank=16),
    moe=MoEConfig(experts=8, experts_per_token=3, expert_dim=7, groups=4, groups_per_token=2),
    mtp_depth=1, init_std=0.2,
)
LOSSES = LossConfig(balance=0.01, expert_balance=0.003, device_balance=0.05,
                    communication_balance=0.02)
T = 7
PRODUCTS = {"fp32": numerics.FP32, "bf16": numerics.BF16, "fp8": gemm.FP8}
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


@dataclasses.dataclass(frozen=True)
class Case:
    name: str
    ranks: int
    layout: ParallelConfig = dataclasses.field(default_factory=ParallelConfig)
    is_unrolled: bool = False
    precision: str = "fp32"
    remat: str = "none"
    dense: int = 1

    def __str__(self):
        said = [self.name, str(self.ranks), self.precision, self.remat]
        said += ["unrolled"] if self.is_unrolled else []
        return "-".join(said + ([str(self.layout)] if self.layout.devices > 1 else []))

    @property
    def microbatches(self):
        return max(4, 2 * self.ranks)

    @property
    def run(self):
        """A stage has one layer or two, or none where there are more stages than layers."""
        rows = 2 * self.microbatches * self.layout.row_devices
        model = dataclasses.replace(MODEL, layers=self.ranks + 1, dense_layers=self.dense)
        train = TrainConfig(batch_size=rows, seq_len=T, microbatches=self.microbatches)
        return RunConfig("pipeline", model, train=train, loss=LOSSES,
                         precision=PrecisionConfig(self.precision),
                         machine=MachineConfig(remat=self.remat))


@functools.cache
def batch_of(rows):
    """Packed documents, padding of unequal length, tokens that are no targets."""
    rng = np.random.default_rng(3)
    shape, at = (rows, T + 1), np.arange(T + 1)[None]
    ends = np.sort(rng.integers(1, T, (rows, 2)), axis=1)
    segments = 1 + (at[None] >= ends.T[:, :, None]).sum(0)
    segments = np.where(at < rng.integers(2, T + 2, (rows, 1)), segments, 0)
    return losses.Batch(
        jnp.asarray(rng.integers(0, MODEL.vocab, shape), jnp.int32),
        jnp.asarray(segments, jnp.int32),
        jnp.asarray(rng.random(shape) < 0.8, jnp.float32))


@functools.cache
def start(model):
    """Parameters with biases that are not zero."""
    p = transformer.init(model, jax.random.key(0))
    rng = np.random.default_rng(1)

    def drawn(path, leaf):
        is_bias = jax.tree_util.keystr(path).endswith(".bias")
        return jnp.asarray(rng.normal(0, 0.05, leaf.shape), jnp.float32) if is_bias else leaf

    return jax.tree_util.tree_map_with_path(drawn, p)


@functools.cache
def alone(run, layout=None):
    """Step of one device on the same microbatches, or of the devices of a layout without `pipe`."""
    layout = layout or ParallelConfig()
    backend, where = single(PRODUCTS[run.precision.matmul]), None
    if layout.devices > 1:
        devices = mesh.make_mesh(layout)
        backend = mesh_backend.on_mesh(backend, devices, layout, run.model)
        where = mesh.sharding(devices, AXES)

    def take(p, batch):
        return step.gradients(p, batch, step.objective_of(run, batch, jnp.int32(0)), run, backend)

    return jax.device_get(jax.jit(take, compiler_options=QUICK)(
        start(run.model), jax.device_put(batch_of(run.train.batch_size), where)))


def piped(case, attend=None):
    """Step of the pipeline on them, and its program."""
    run, layout = case.run, case.layout
    program = compile_table(latest(lockstep(build(case.name, case.ranks, case.microbatches))))
    devices = mesh.make_mesh(dataclasses.replace(layout, pipe=case.ranks))
    if case.ranks == 1:
        devices = jax.make_mesh((1,) * 5, (PIPE, *AXES), devices=jax.devices()[:1],
                                axis_types=(jax.sharding.AxisType.Auto,) * 5)
    backend = for_rank(single(PRODUCTS[case.precision]), MODEL, layout)
    backend = dataclasses.replace(backend, attend=attend or backend.attend,
                                  remat=policy(case.remat))
    pipe = executor.Pipeline(program, devices, run.model, backend, case.is_unrolled)
    specs = transformer.specs(run.model)

    def take(p, batch):
        quantized = None
        if case.precision != "fp32":
            quantized = numerics.quantize_weights(p, specs, backend.precision)
        cut = jax.tree.map(lambda a: a.reshape(case.microbatches, -1, T + 1), batch)
        return executor.run(pipe, p, quantized, cut, step.objective_of(run, batch, jnp.int32(0)))

    out = jax.jit(take, compiler_options=QUICK)(start(run.model), batch_of(run.train.batch_size))
    return jax.device_get(out), program


def relative(got, wanted):
    pairs = zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True)
    return max(float(np.abs(np.subtract(a, b)).max() / max(np.abs(b).max(), 1e-30))
               for a, b in pairs if np.size(b))


def check(case, attend=None):
    """The tolerances hold in FP8 too. Codes are rounded from the same numbers, and scales are
    powers of two: where Wgrad's tiles of 128 tokens hold those of one device here and of all
    devices there, only what is subnormal under one scale and not under the other can differ, by
    half a step of 2^-9 under a largest code of at least 224, 4e-6 of the tile's largest number.
    """
    out, program = piped(case, attend)
    has_wire = case.precision != "fp32" and case.layout.expert > 1  # one device exchanges nothing
    grads, total, parts = alone(case.run, case.layout) if has_wire else alone(case.run)
    assert relative(out.total, total) <= 1e-6
    # A position's sums are the same; microbatches and ranks are added up in another order.
    assert relative(out.parts.replace(extra_rounds=parts.extra_rounds), parts) <= 1e-6
    assert (out.parts.extra_rounds > 0) == (case.layout.capacity_factor < 1)
    np.testing.assert_array_equal(out.parts.loads, parts.loads)
    assert relative(out.grads, grads) <= 1e-5
    assert [name for name, _ in params.paths(out.grads)] == [n for n, _ in params.paths(grads)]
    assert executor.executed_work(program, out.executed) == program.steps.work


SAMPLE = [Case("dualpipe", 2, is_unrolled=True)]  # others: tests/train/test_pipelined.py
EVERY = [Case(name, ranks) for name in NAMES for ranks in (2, 4, 8)]
FORMS = [
    Case("dualpipe", 2, ParallelConfig(data=2, expert=2)),
    Case("zb-v", 2, ParallelConfig(expert=4, expert_nodes=2, capacity_factor=0.7)),
    Case("dualpipe-v", 2, precision="fp8"),
    Case("1f1b", 2, ParallelConfig(expert=2), precision="fp8"),
    Case("zb-v", 2, ParallelConfig(data=2, expert=2), precision="fp8"),
    Case("dualpipe", 4, ParallelConfig(expert=2), precision="fp8"),
    Case("dualpipe-v", 2, ParallelConfig(expert=2), precision="bf16"),
    Case("zb-h1", 2, ParallelConfig(expert=2), precision="fp8"),
    Case("zb-h1", 2, ParallelConfig(data=2), precision="bf16"),
    Case("interleaved", 2, remat="v3"),
    Case("dualpipe", 2, remat="full"),
    Case("dualpipe-v", 2, ParallelConfig(expert=2), is_unrolled=True),
    Case("dualpipe", 4, ParallelConfig(expert=2), is_unrolled=True),
    Case("dualpipe", 2, dense=2, is_unrolled=True),  # stages that differ in their kinds of layers
    Case("1f1b", 2, dense=3),  # no mixture but the MTP module's
    Case("1f1b", 1),
]


@pytest.mark.exhaustive
@pytest.mark.parametrize("case", SAMPLE, ids=str)
def test_a_pipeline_computes_what_one_device_computes(case):
    check(case)


@pytest.mark.exhaustive
@pytest.mark.parametrize("case", [c for c in EVERY if c not in SAMPLE], ids=str)
def test_every_schedule_is_exact_on_two_four_and_eight_ranks(case):
    check(case)


@pytest.mark.exhaustive
@pytest.mark.parametrize("case", FORMS, ids=str)
def test_devices_of_a_rank_precision_and_recomputation_change_nothing(case):
    check(case)


@pytest.mark.exhaustive
def test_long_rows_are_attended_in_blocks_within_a_pipeline(monkeypatch):
    case = Case("zb-v", 2)
    alone(case.run)  # in one piece
    monkeypatch.setattr(attention, "UNROLLED_BLOCKS", 2)
    check(case, functools.partial(attention.attend, block=2))


@pytest.mark.exhaustive  # as are the comparisons whose batch it is
def test_the_compared_batch_would_show_each_way_of_averaging_wrongly():
    """Documents, padding, targets, biases and losses of the cases are such that each would show."""
    run = Case("zb-v", 2).run
    batch = batch_of(run.train.batch_size)
    assert set(np.unique(batch.segments)) >= {0, 1, 2}  # packed, with padding
    for ahead in (1, 2):  # next tokens, and the MTP module's
        weights = losses.target_weights(batch, ahead).reshape(run.train.microbatches, -1)
        targets = weights.sum(axis=1)
        assert len(np.unique(targets)) > 2
        assert targets.min() < 0.9 * targets.max()
    _, total, parts = alone(run)
    rest, mtp = parts.nll / float(losses.count(batch).targets) * [1, run.loss.mtp_weight]
    np.testing.assert_allclose(total, rest + mtp + parts.balance, rtol=1e-6)
    assert min(parts.balance, mtp, rest) > 1e-3 * total  # a term lost shows 1000 times over
    loads = parts.loads
    assert loads.shape == (run.model.moe_layers + run.model.mtp_depth, MODEL.moe.experts)
    assert (loads.max(axis=1) > loads.mean(axis=1)).all()  # so that the bias rule moves biases
