"""Weights of any source stream onto any shardings; no device holds more than its own of them."""

import dataclasses
from collections import defaultdict

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from configs import tiny
from dsjax import params, weights
from dsjax.checkpoint import reader, sink
from dsjax.checkpoint.reader import Leaf, OnDevices
from dsjax.config.model import MLAConfig, ModelConfig, MoEConfig
from dsjax.config.parallel import ParallelConfig
from dsjax.errors import UserError
from dsjax.model import transformer
from dsjax.released import hf
from dsjax.released.target import Target
from dsjax.released.write import Export, Form
from dsjax.train import sharding
from dsjax.train.folder import resume
from tests.released.test_hf import draw, same

CFG = ModelConfig(64, 32, 3, 1, 48, MLAConfig(4, 16, 8, 4, 8),
                  MoEConfig(8, 2, 16, groups=4, groups_per_token=2), mtp_depth=1)
QUIET = {"say": lambda sentence: None}


class Formula:
    """A source from elsewhere: numbers that nobody stores, made when they are asked for."""

    def __init__(self, cfg, step):
        self.cfg = cfg
        self.leaves = {
            name: Leaf(spec.shape, np.dtype(np.float32), tuple(min(step, n) for n in spec.shape))
            for name, spec in params.paths(transformer.specs(cfg))}

    def read(self, name, index):
        grid = np.meshgrid(*(np.arange(s.start, s.stop) for s in index), indexing="ij")
        return sum((7 ** i * g for i, g in enumerate(grid)), len(name)).astype(np.float32)

    def whole(self):
        arrays = {name: self.read(name, tuple(slice(0, n) for n in leaf.shape))
                  for name, leaf in self.leaves.items()}
        return reader.tree(self.cfg, arrays)


def run_on(layout, microbatches=1):
    return dataclasses.replace(
        tiny.config(), model=CFG, parallel=layout,
        train=dataclasses.replace(tiny.config().train, batch_size=8, microbatches=microbatches))


LAYOUT = ParallelConfig(data=2, fsdp=2, expert=2)


def test_a_source_from_elsewhere_is_loaded_and_exported(tmp_path):
    source = Formula(CFG, 5)
    same(jax.tree.map(np.asarray, sink.load(source)), source.whole())
    Export(source, Form()).write(Target(tmp_path / "out", None), lambda done, total: None)
    same(jax.tree.map(np.asarray, hf.load(tmp_path / "out", **QUIET)[1]), source.whole())


def live_bytes():
    """Bytes of live buffers by device."""
    buffers = {(shard.device, shard.data.unsafe_buffer_pointer()): shard.data.nbytes
               for array in jax.live_arrays() for shard in array.addressable_shards}
    held = defaultdict(int)
    for (device, _), size in buffers.items():
        held[device] += size
    return held


def test_no_device_holds_more_than_its_shards_and_one_chunk(monkeypatch):
    """As on accelerators: a cap below the whole, which a device that got all of it would break."""
    cfg = dataclasses.replace(CFG, layers=1, dense_layers=0, mtp_depth=0)
    run = dataclasses.replace(run_on(LAYOUT), model=cfg)
    mesh = sharding.open_mesh(run)
    where = sharding.state_shardings(run, mesh).params
    source = Formula(cfg, 8)
    before, peak = live_bytes(), defaultdict(int)
    chunk = max(4 * int(np.prod(leaf.chunk)) for leaf in source.leaves.values())
    share = sum(4 * int(np.prod(s.shard_shape(leaf.shape))) for (_, s), leaf in zip(
        params.paths(where), source.leaves.values(), strict=True))
    cap = share + chunk + 4096  # and the indices of an update
    assert cap < sum(leaf.nbytes for leaf in source.leaves.values()) / 2

    class Accelerators(sink.Buffers):
        def __init__(self, leaves, sharding_of):
            super().__init__(leaves, sharding_of, host_platforms=())

        def put(self, name, index, values):
            super().put(name, index, values)
            for device, held in live_bytes().items():
                peak[device] = max(peak[device], held - before[device])

    monkeypatch.setattr(sink, "Buffers", Accelerators)
    got = sink.load(source, where)
    same(jax.tree.map(np.asarray, got), source.whole())
    assert len(peak) == 8
    assert max(peak.values()) <= cap


def test_a_chunk_is_read_only_as_far_as_this_process_holds_it():
    leaf = Leaf((8, 6), np.dtype(np.float32), (8, 6))
    mesh = jax.make_mesh((2,), ("a",), devices=jax.devices()[:2])
    where = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("a"))
    buffers = sink.Buffers({"x": leaf}, lambda name: where)
    buffers._bounds["x"].pop(jax.devices()[0])  # as if it were another process's
    assert buffers.part("x", np.s_[0:8, 0:6]) == np.s_[4:8, 0:6]
    assert buffers.part("x", np.s_[0:4, 0:6]) is None


@pytest.mark.parametrize("layout", [LAYOUT, ParallelConfig(pipe=4)], ids=["cut", "pipe"])
@pytest.mark.parametrize("is_fp8", [False, True], ids=["float32", "fp8"])
def test_a_run_begins_from_a_released_folder_on_any_layout(layout, is_fp8, tmp_path):
    """Float32 masters of the exact numbers, each where the run keeps it."""
    cfg = dataclasses.replace(CFG, layers=9, mtp_depth=0) if layout.pipe > 1 else CFG
    hf.save(tmp_path / "released", cfg, draw(cfg), fp8=is_fp8)
    run = dataclasses.replace(run_on(layout, layout.pipe), model=cfg,
                              init_from=str(tmp_path / "released"))
    mesh = sharding.open_mesh(run)
    begun = resume.begin(run, lambda sentence: None, mesh)
    same(begun.params, hf.load(tmp_path / "released", "float32", **QUIET)[1])
    for a, where in zip(jax.tree.leaves(begun), jax.tree.leaves(
            sharding.state_shardings(run, mesh)), strict=True):
        assert a.sharding.is_equivalent_to(where, a.ndim)


def test_fp8_stays_on_the_shardings_of_the_matrices_it_is_of(tmp_path):
    hf.save(tmp_path / "released", CFG, draw(CFG), fp8=True)
    run = run_on(LAYOUT)
    where = sharding.state_shardings(run, sharding.open_mesh(run)).params
    got = weights.load(tmp_path / "released", "fp8", where, **QUIET)
    codes = got.moe.ffn.experts.w_down.codes
    assert codes.addressable_shards[0].data.size < codes.size / 2
    same(jax.tree.map(np.asarray, got), jax.tree.map(
        np.asarray, hf.load(tmp_path / "released", "fp8", **QUIET)[1]))


def test_a_box_of_a_matrix_in_fp8_is_that_box_of_all_of_it():
    """Boxes that begin within heads and blocks, which no file's rows do."""
    cfg = dataclasses.replace(CFG, d_model=200)
    whole = draw(cfg)
    kept = OnDevices(cfg, jax.tree.map(np.asarray, whole))
    assert kept.leaves.keys() == dict(params.paths(transformer.specs(cfg))).keys()
    rng = np.random.default_rng(0)
    codes = rng.standard_normal((200, 300)).astype(ml_dtypes.float8_e4m3fn)
    scales = rng.random((2, 3)).astype(np.float32)
    expected = codes.astype(np.float32) * scales[np.arange(200)[:, None] // 128,
                                                 np.arange(300)[None] // 128]
    for rows, columns in ((slice(0, 200), slice(0, 300)), (slice(100, 150), slice(250, 260))):
        part = scales[rows.start // 128 : -(-rows.stop // 128),
                      columns.start // 128 : -(-columns.stop // 128)]
        got = reader.dequantize(codes[rows, columns], part, (128, 128),
                                (rows.start, columns.start))
        np.testing.assert_array_equal(got, expected[rows, columns])


def test_what_a_folder_does_not_have_is_refused_by_name(tmp_path):
    hf.save(tmp_path / "released", CFG, draw(CFG))
    with pytest.raises(UserError, match="average"):
        weights.load(tmp_path / "released", choice=weights.Choice(which="ema"), **QUIET)
    wide = dataclasses.replace(CFG, d_model=40)
    with pytest.raises(UserError, match=r"embed is float32\[64, 32\] there and \[64, 40\]"):
        weights.load(tmp_path / "released", choice=weights.Choice(model=wide), **QUIET)
    assert weights.model(tmp_path / "released") == CFG
    assert jnp.isfinite(weights.load(tmp_path / "released", **QUIET).embed).all()
