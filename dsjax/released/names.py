"""One table of names: which released tensor is which part of which parameter, in both directions.

A linear weight is [out, in] in released checkpoints and [in, ..., out, ...] here, so it is
transposed and its dims are cut: q_b_proj's rows are heads of [nope; rope], kv_b_proj's heads of
[nope; value], kv_a_proj_with_mqa's the latent and then the shared rotary key, o_proj's columns
heads of values. Layers and experts are separate tensors there and stacked here; gate and up are
one array here.

MTP module k is layer `num_hidden_layers + k` there (DeepSeek-V3, README_WEIGHTS). eh_proj reads
[enorm(embedding); hnorm(hidden)], embedding first: the report's eq. 21 prints the other order, but
every engine that runs the released weights joins them so (DeepSeek-V3 issue 712). The hidden state
is the one after the main model's final norm (vLLM PR 47448), the module's own norm is
shared_head.norm; transformers' MtpModel computes the same. The module's embedding and head are
copies of the main model's, written when saving and compared when loading.

FP8 tensors have a second one, `..._scale_inv`: float32, one number a 128x128 block, blocks at an
edge smaller. Kept in 8 bits, a matrix is `Scaled`: codes [..., K, N] as products read them, tiled
128x128, or [..., K, 2, F] tiled 128x1x128 for gate and up, whose blocks do not run into another.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass

from dsjax import params
from dsjax.checkpoint.boxes import Index
from dsjax.config.model import MLAConfig, ModelConfig
from dsjax.errors import UserError
from dsjax.model import transformer
from dsjax.params import Spec

BLOCK = 128
SCALE = "_scale_inv"


@dataclass(frozen=True)
class Row:
    """A line of the table: the two names, and which half of gate and up it is."""

    released: str
    leaf: str
    is_transposed: bool = False
    part: int | None = None


SWIGLU = (
    Row("gate_proj.weight", "w_gate_up", is_transposed=True, part=0),
    Row("up_proj.weight", "w_gate_up", is_transposed=True, part=1),
    Row("down_proj.weight", "w_down", is_transposed=True),
)


def _under(released: str, leaf: str, rows: tuple[Row, ...]) -> tuple[Row, ...]:
    return tuple(
        dataclasses.replace(r, released=released + r.released, leaf=leaf + r.leaf) for r in rows
    )


BLOCK_ROWS = (
    Row("input_layernorm.weight", "attn_norm"),
    Row("self_attn.q_a_proj.weight", "attn.w_dq", is_transposed=True),
    Row("self_attn.q_a_layernorm.weight", "attn.q_norm"),
    Row("self_attn.q_b_proj.weight", "attn.w_uq", is_transposed=True),
    Row("self_attn.kv_a_proj_with_mqa.weight", "attn.w_dkv", is_transposed=True),
    Row("self_attn.kv_a_layernorm.weight", "attn.kv_norm"),
    Row("self_attn.kv_b_proj.weight", "attn.w_ukv", is_transposed=True),
    Row("self_attn.o_proj.weight", "attn.w_o", is_transposed=True),
    Row("post_attention_layernorm.weight", "ffn_norm"),
    *_under("mlp.", "ffn.", SWIGLU),
    Row("mlp.gate.weight", "ffn.router.centroids", is_transposed=True),
    Row("mlp.gate.e_score_correction_bias", "ffn.router.bias"),
    *_under("mlp.shared_experts.", "ffn.shared.", SWIGLU),
    *_under("mlp.experts.{expert}.", "ffn.experts.", SWIGLU),
)
DIRECT_QUERY = {"self_attn.q_b_proj.weight": "self_attn.q_proj.weight"}
"""Without query compression W^UQ reads the model's channels, under another name (V2-Lite)."""

TOP = (
    Row("model.embed_tokens.weight", "embed"),
    Row("model.norm.weight", "norm"),
    Row("lm_head.weight", "head", is_transposed=True),
)
MTP_ROWS = (
    Row("enorm.weight", "embed_norm"),
    Row("hnorm.weight", "hidden_norm"),
    Row("eh_proj.weight", "w_proj", is_transposed=True),
    Row("shared_head.norm.weight", "norm"),
)
MTP_COPIES = (("embed_tokens.weight", TOP[0]), ("shared_head.head.weight", TOP[2]))


@dataclass(frozen=True)
class Placement:
    """The place of one released tensor: `leaf[(*at, ...)]`, transposed or not."""

    name: str
    shape: tuple[int, ...]  # released
    leaf: str  # dotted name in TransformerParams
    at: tuple[int, ...]  # layer or depth, then expert
    inner: tuple[int, ...]  # dims of the part of the leaf that this is, without `part`'s
    contract: int  # of `inner`, the dims that a transposed tensor's columns become
    part: int | None = None
    is_transposed: bool = False
    is_product: bool = False  # a matrix that 8 bits may hold
    copy_of: str | None = None  # the released tensor that this one repeats

    @property
    def rows_together(self) -> int:
        """Released rows that make one step of the leaf's first output dim (a head's channels)."""
        return math.prod(self.inner[self.contract + 1 :]) if self.is_transposed else 1

    @property
    def key(self) -> tuple[int, ...]:
        """Its place among the tensors of the leaf: `at`, and then `part`."""
        return self.at if self.part is None else (*self.at, self.part)

    def index(self, start: int, stop: int) -> Index:
        """Return the box of the leaf in which released rows start..stop lie."""
        if not self.is_transposed:
            rows = [slice(start, stop), *(slice(0, n) for n in self.inner[1:])]
        else:
            together = self.rows_together
            outs = [slice(start // together, stop // together)]
            outs += [slice(0, n) for n in self.inner[self.contract + 1 :]]
            part = [] if self.part is None else [slice(self.part, self.part + 1)]
            rows = [slice(0, n) for n in self.inner[: self.contract]] + part + outs
        return tuple(slice(i, i + 1) for i in self.at) + tuple(rows)

    def rows(self, index: Index) -> tuple[int, int]:
        """Return the first and last (exclusive) of the released rows that a box meets."""
        dim = len(self.at)
        if self.is_transposed:
            dim += self.contract + (self.part is not None)
        together = self.rows_together
        return index[dim].start * together, index[dim].stop * together


def placements(cfg: ModelConfig) -> Iterator[Placement]:
    """Every tensor of the released form of a model, in its order: layers, then MTP modules."""
    if not isinstance(cfg.attention, MLAConfig):
        raise UserError(
            f"attention={type(cfg.attention).__name__} has no released form; only models with "
            "multi-head latent attention can be written as DeepSeek checkpoints"
        )
    specs = dict(params.paths(transformer.specs(cfg)))
    yield _place(TOP[0], "", "", specs, ())
    for layer in range(cfg.layers):
        stack, at = cfg.stack_of(layer)
        yield from _block(f"model.layers.{layer}.", f"{stack.name}.", specs, (at,), cfg)
    for depth in range(cfg.mtp_depth):
        prefix = f"model.layers.{cfg.layers + depth}."
        for row in MTP_ROWS:
            yield _place(row, prefix, "mtp.", specs, (depth,))
        for name, row in MTP_COPIES:
            main = _place(row, "", "", specs, ())
            yield dataclasses.replace(main, name=prefix + name, copy_of=main.name)
        yield from _block(prefix, "mtp.block.", specs, (depth,), cfg)
    yield _place(TOP[1], "", "", specs, ())
    yield _place(TOP[2], "", "", specs, ())


def _block(released: str, leaf: str, specs: dict[str, Spec], at: tuple[int, ...],
           cfg: ModelConfig) -> Iterator[Placement]:
    """One layer's tensors, those whose parameters the model has."""
    is_direct = isinstance(cfg.attention, MLAConfig) and cfg.attention.q_rank is None
    for row in BLOCK_ROWS:
        if leaf + row.leaf not in specs:
            continue
        if is_direct:
            name = DIRECT_QUERY.get(row.released, row.released)
            row = dataclasses.replace(row, released=name)
        if "{expert}" not in row.released:
            yield _place(row, released, leaf, specs, at)
            continue
        for expert in range(specs[leaf + row.leaf].shape[1]):
            name = row.released.format(expert=expert)
            one = dataclasses.replace(row, released=name)
            yield _place(one, released, leaf, specs, (*at, expert))


def _place(row: Row, released: str, leaf: str, specs: dict[str, Spec],
           at: tuple[int, ...]) -> Placement:
    """A row of the table at one index."""
    spec = specs[leaf + row.leaf]
    inner = spec.shape[spec.batch_dims :]
    assert len(at) == spec.batch_dims, f"{leaf}{row.leaf} is stacked {spec.batch_dims} deep"
    if row.part is not None:
        inner = inner[:1] + inner[2:]
    shape = inner
    if row.is_transposed:
        split = spec.contract_dims
        shape = (math.prod(inner[split:]), math.prod(inner[:split]))
    return Placement(released + row.released, shape, leaf + row.leaf, at, inner,
                     spec.contract_dims, row.part, row.is_transposed, spec.is_product)


def scale_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Shape of the scales of an FP8 matrix."""
    return tuple(-(-n // BLOCK) for n in shape)


def at_rest(place: Placement) -> tuple[Placement, Placement]:
    """Return where an FP8 matrix and its scales lie as they are: `leaf.codes`, `leaf.scales`."""
    codes = dataclasses.replace(
        place, leaf=place.leaf + ".codes", inner=place.shape[::-1], contract=1
    )
    shape = scale_shape(place.shape)
    scales = dataclasses.replace(codes, name=place.name + SCALE, leaf=place.leaf + ".scales",
                                 shape=shape, inner=shape[::-1])
    return codes, scales
