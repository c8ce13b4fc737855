"""A compiled program is read as it stands: what travels, how often, and what hides it."""

import textwrap

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from dsjax.plan import hlo

SCAN = """
    HloModule jit_step, is_scheduled=true, num_partitions=8

    %add (l: f32[], r: f32[]) -> f32[] {
      %l = f32[] parameter(0)
      %r = f32[] parameter(1)
      ROOT %plus = f32[] add(%l, %r)
    }

    %fused (p: bf16[64,32]) -> bf16[64,16] {
      %p = bf16[64,32]{1,0} parameter(0)
      %w = bf16[32,16]{1,0} constant({...})
      ROOT %dot.1 = bf16[64,16]{1,0} dot(%p, %w), lhs_contracting_dims={1}
    }

    %body (s: (s32[], bf16[64,32])) -> (s32[], bf16[64,32]) {
      %s = (s32[], bf16[64,32]{1,0:T(8,128)(2,1)}) parameter(0)
      %i = s32[] get-tuple-element(%s), index=0
      %x = bf16[64,32]{1,0} get-tuple-element(%s), index=1
      %all-to-all-start.1 = ((bf16[64,32]{1,0}), bf16[64,32]{1,0}, u32[]{:S(2)}) \
all-to-all-start(%x), channel_id=1, replica_groups={{0,1,2,3},{4,5,6,7}}, dimensions={0}
      %product = bf16[64,16]{1,0} fusion(%x), kind=kOutput, calls=%fused
      %sum = bf16[64,16]{1,0} add(%product, %product)
      %all-to-all-done.1 = bf16[64,32]{1,0} all-to-all-done(%all-to-all-start.1)
      %ragged.1 = bf16[64,32]{1,0} ragged-all-to-all(%x, %x, %i, %i, %i, /*index=5*/%i), \
replica_groups=mesh['axis_0'=4,'axis_1'=2] {'axis_1'}
      ROOT %out = (s32[], bf16[64,32]{1,0}) tuple(%i, %all-to-all-done.1)
    }

    %condition (s: (s32[], bf16[64,32])) -> pred[] {
      %limit = s32[] constant(58)
      %s.1 = (s32[], bf16[64,32]{1,0}) parameter(0)
      %i.1 = s32[] get-tuple-element(%s.1), index=0
      ROOT %less = pred[] compare(%i.1, %limit), direction=LT
    }

    %open_condition (s: (s32[], bf16[64,32])) -> pred[] {
      %s.2 = (s32[], bf16[64,32]{1,0}) parameter(0)
      %i.2 = s32[] get-tuple-element(%s.2), index=0
      ROOT %less.2 = pred[] compare(%i.2, %i.2), direction=LT
    }

    %again (s: (s32[], bf16[64,32])) -> (s32[], bf16[64,32]) {
      %s.3 = (s32[], bf16[64,32]{1,0}) parameter(0)
      %x.3 = bf16[64,32]{1,0} get-tuple-element(%s.3), index=1
      %permuted = bf16[64,32]{1,0} collective-permute(%x.3), source_target_pairs={{0,1}}
      ROOT %out.3 = (s32[], bf16[64,32]{1,0}) tuple(%permuted)
    }

    %all-reduce-scatter.1 (p: f32[64,32]) -> f32[8,32] {
      %p.4 = f32[64,32]{1,0} parameter(0)
      %all-reduce.4 = f32[64,32]{1,0} all-reduce(%p.4), replica_groups=[1,8]<=[8], to_apply=%add
      ROOT %cut = f32[8,32]{1,0} dynamic-slice(%all-reduce.4), dynamic_slice_sizes={8,32}
    }

    ENTRY %main (a: (s32[], bf16[64,32])) -> f32[8,32] {
      %a = (s32[], bf16[64,32]{1,0}) parameter(0)
      %loop = (s32[], bf16[64,32]{1,0}) while(%a), condition=%condition, body=%body
      %open = (s32[], bf16[64,32]{1,0}) while(%loop), condition=%open_condition, body=%again
      %f = f32[64,32]{1,0} broadcast(%open)
      %whole = f32[64,32]{1,0} all-reduce(%f), replica_groups={}, to_apply=%add
      ROOT %parts = f32[8,32]{1,0} fusion(%whole), kind=kCustom, calls=%all-reduce-scatter.1
    }
"""


@pytest.fixture(scope="module")
def found():
    return {c.name: c for c in hlo.collectives(textwrap.dedent(SCAN))}


def test_a_pair_with_a_product_between_is_hidden(found):
    pair = found["all-to-all-start.1"]
    assert (pair.kind, pair.is_async, pair.products, pair.others) == ("all-to-all", True, 1, 1)
    assert pair.is_hidden
    assert (pair.bytes, pair.group, pair.times) == (64 * 32 * 2, 4, 58)


def test_products_of_attention_are_told_by_their_scope(found):
    assert found["all-to-all-start.1"].attention == 0
    for name, count in (("jit(f)/while/body/attention/dot_general", 1),
                        ("transpose(jvp(attention))/dot_general", 1),
                        ("jit(f)/after_attention/dot_general", 0)):
        product = "dot(%p, %w), lhs_contracting_dims={1}"
        text = SCAN.replace(product, f'{product}, metadata={{op_name="{name}"}}')
        rows = {row["kind"]: row for row in hlo.summary(hlo.collectives(textwrap.dedent(text)))}
        assert (rows["all-to-all"]["hidden"], rows["all-to-all"]["attention"]) == (1, count)
        assert rows["all-to-all"]["attention_bytes"] == count * 58 * 4096


def test_a_loop_over_data_counts_once_inside_a_stated_loop():
    """Attention's: blocks of queries are a stated loop, the keys that each may see one over data.

    A stated loop of three around a loop over data with a product, between start and done, are
    three products more; a loop over data alone, a rare round, adds none.
    """
    inner = SCAN.replace("%permuted = bf16[64,32]{1,0} collective-permute(%x.3), "
                         "source_target_pairs={{0,1}}",
                         "%permuted = bf16[64,16]{1,0} fusion(%x.3), kind=kOutput, calls=%fused")
    outer = inner.replace("    %all-reduce-scatter.1 (p", """    %three (s: (s32[])) -> pred[] {
      %limit.5 = s32[] constant(3)
      ROOT %less.5 = pred[] compare(%limit.5, %limit.5), direction=LT
    }

    %queries (s: (s32[])) -> (s32[]) {
      %s.6 = (s32[]) parameter(0)
      ROOT %keys = (s32[]) while(%s.6), condition=%open_condition, body=%again
    }

    %all-reduce-scatter.1 (p""")
    done = "      %all-to-all-done.1"
    for loop, products in (("condition=%three, body=%queries", 4),
                           ("condition=%open_condition, body=%again", 1)):
        text = outer.replace(done, f"      %between = (s32[]) while(%s), {loop}\n{done}")
        pairs = [c for c in hlo.collectives(textwrap.dedent(text)) if c.is_async]
        assert [c.products for c in pairs] == [products]


def test_a_collective_without_a_pair_is_synchronous(found):
    ragged = found["ragged.1"]
    assert (ragged.kind, ragged.is_async, ragged.is_hidden) == ("ragged-all-to-all", False, False)
    assert (ragged.bytes, ragged.group, ragged.times) == (64 * 32 * 2, 2, 58)


def test_what_only_a_loop_over_data_runs_is_rare(found):
    assert found["permuted"].is_rare
    assert found["permuted"].times == 0
    assert not any(c.is_rare for name, c in found.items() if name != "permuted")


def test_a_reduce_scatter_written_as_a_fusion_is_one(found):
    assert found["parts"].kind == "reduce-scatter"
    assert (found["parts"].group, found["parts"].bytes) == (8, 64 * 32 * 4)
    assert (found["whole"].kind, found["whole"].group) == ("all-reduce", 8)
    assert len(found) == 5


def test_the_summary_counts_what_a_step_runs(found):
    rows = {row["kind"]: row for row in hlo.summary(list(found.values()))}
    assert rows["all-to-all"]["bytes"] == 58 * 4096
    assert rows["all-to-all"]["hidden"] == rows["all-to-all"]["asynchronous"] == 1
    assert rows["all-to-all"]["hidden_bytes"] == rows["all-to-all"]["bytes"]
    assert rows["all-to-all"]["other"] == rows["all-to-all"]["other_bytes"] == 0
    assert rows["all-to-all"]["sent"] == 58 * 4096 * 3 // 4
    assert (rows["collective-permute"]["count"], rows["collective-permute"]["rare"]) == (0, 1)
    assert rows["all-reduce"]["sent"] == 2 * 64 * 32 * 4 * 7 // 8


def test_a_pair_that_the_compiler_made_synchronous_is_not_asynchronous():
    text = textwrap.dedent(SCAN).replace(
        "replica_groups={{0,1,2,3},{4,5,6,7}}, dimensions={0}",
        'replica_groups={{0,1,2,3},{4,5,6,7}}, backend_config={"is_sync":true}')
    pair = next(c for c in hlo.collectives(text) if c.name == "all-to-all-start.1")
    assert not pair.is_async
    assert not pair.is_hidden


def test_work_without_products_counts_apart():
    text = textwrap.dedent(SCAN).replace("fusion(%x), kind=kOutput, calls=%fused", "copy(%x)")
    rows = {row["kind"]: row for row in hlo.summary(hlo.collectives(text))}
    assert rows["all-to-all"]["hidden"] == 0
    assert (rows["all-to-all"]["other"], rows["all-to-all"]["other_bytes"]) == (1, 58 * 4096)


def test_sizes_of_types_are_in_bytes():
    assert hlo.size("f8e4m3fn[3,5]{1,0}") == 15
    assert hlo.size("(bf16[2,8]{1,0:T(8,128)(2,1)}, pred[3]{0}, s4[3], token[], u32[])") == 41


def test_the_groups_of_every_notation_are_read():
    assert hlo.group_size("replica_groups=[4,16]<=[64]") == 16
    assert hlo.group_size("replica_groups={{0,1,2}}") == 3
    mesh = "replica_groups=mesh['a'=4,'b'=8] {%s}"
    assert hlo.group_size(mesh % "'a','b'") == 32
    assert hlo.group_size(mesh % "'b':(2)4") == 4
    in_order = "replica_groups=mesh['a'=4,'b'=8], device_ids=([4,8]T(1,0)) {'b'}, dimensions={0}"
    assert hlo.group_size(in_order) == 8


def test_a_program_compiled_here_is_counted_as_it_runs():
    """Five layers, each with one all-to-all of 2 x 4 float32 numbers on each of 2 devices."""
    mesh = jax.make_mesh((2,), ("x",), axis_types=(AxisType.Auto,), devices=jax.devices()[:2])

    def layer(x, _):
        return lax.all_to_all(jnp.sin(x), "x", 0, 0, tiled=True), None

    f = jax.shard_map(lambda x: lax.scan(layer, x, length=5)[0], mesh=mesh,
                      in_specs=PartitionSpec("x"), out_specs=PartitionSpec("x"))
    x = jax.ShapeDtypeStruct((4, 4), jnp.float32, sharding=NamedSharding(mesh, PartitionSpec("x")))
    (row,) = hlo.summary(hlo.collectives(jax.jit(f).lower(x).compile().as_text()))
    assert (row["kind"], row["group"], row["runs"]) == ("all-to-all", 2, 5)
    assert row["bytes"] == 5 * 2 * 4 * 4
