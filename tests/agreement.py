"""The bridge to the NumPy reference: one model in both, compared in float64.

In float64 the two differ by rounding only: a scalar of the complete loss is a sum of some 10^4
products of relative error 2^-53, and the layers' conditioning adds perhaps two digits. So 1e-10 is
asked for everywhere, and a wrong epsilon, sign or scale shows.
"""

import dataclasses
import operator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dsjax import params
from dsjax.config.model import GQAConfig, MLAConfig, ModelConfig, MoEConfig, RopeConfig, YarnConfig
from dsjax.layers.backend import Backend, single
from dsjax.numerics.precision import plain_precision
from tests.reference import trees
from tests.reference.config import ReferenceConfig

RTOL = 1e-10
FP64 = plain_precision("fp64", jnp.dtype(jnp.float64))

MLA = MLAConfig(heads=3, kv_rank=8, nope_dim=5, rope_dim=4, value_dim=7, q_rank=6,
                latent_norm_eps=1e-3)  # far from norm_eps, so that neither stands for the other
MLA_DIRECT = dataclasses.replace(MLA, q_rank=None)
GQA = GQAConfig(heads=6, kv_heads=2, head_dim=4)
MHA = GQAConfig(heads=3, kv_heads=3, head_dim=4)
V3_MOE = MoEConfig(experts=6, experts_per_token=2, expert_dim=5, groups=3, groups_per_token=2,
                   scale=2.5)
V2_MOE = dataclasses.replace(V3_MOE, score="softmax", group_score="max", is_normalized=False,
                             has_bias=False, scale=16.0, shared_experts=2)
YARN = RopeConfig(yarn=YarnConfig(factor=4.0, original_length=16, beta_fast=2.0, beta_slow=0.25,
                                  mscale=0.7, mscale_all_dim=1.3))
TINY = ModelConfig(vocab=11, d_model=10, layers=3, dense_layers=1, dense_dim=9, attention=MLA,
                   moe=V3_MOE, mtp_depth=2)


def double() -> Backend:
    """A backend in float64; use inside `jax.enable_x64(True)`."""
    return dataclasses.replace(single(FP64, jnp.float64), loss_chunk=3)


def draw(specs: Any, seed: int, dtype: Any = None) -> Any:
    """Values of the size that keeps activations near 1: gains near 1, biases near 0."""
    rng = np.random.default_rng(seed)

    def leaf(spec: params.Spec) -> jax.Array:
        noise = rng.standard_normal(spec.shape)
        if spec.init == "ones":
            a = 1 + 0.2 * noise
        elif spec.init == "zeros":
            a = 0.1 * noise
        else:
            inner = spec.shape[spec.batch_dims : spec.batch_dims + spec.contract_dims]
            a = noise / np.sqrt(np.prod(inner))
        return jnp.asarray(a, dtype or jnp.result_type(float))

    return params.map_specs(leaf, specs)


def as_reference(tree: Any) -> Any:
    """A parameter class as the reference's nested dicts; stacks of layers become lists."""
    if dataclasses.is_dataclass(tree):
        fields = {f.name: getattr(tree, f.name) for f in dataclasses.fields(tree)}
        converted = {}
        for name, value in fields.items():
            if name == "stacks":
                converted |= {kind: _unstacked(value.get(kind)) for kind in ("dense", "moe")}
            elif name == "mtp":
                converted[name] = _unstacked(value)
            elif value is not None:
                converted[name] = as_reference(value)
        return converted
    return np.asarray(tree, np.float64)


def _unstacked(stack: Any) -> list:
    if stack is None:
        return []
    count = jax.tree.leaves(stack)[0].shape[0]
    return [as_reference(jax.tree.map(operator.itemgetter(i), stack)) for i in range(count)]


def reference_config(cfg: ModelConfig) -> ReferenceConfig:
    """The same model in the reference's words."""
    a, moe = cfg.attention, cfg.moe
    attention: dict[str, Any] = {"heads": a.heads}
    if isinstance(a, MLAConfig):
        attention |= {"nope": a.nope_dim, "rope": a.rope_dim, "value": a.value_dim,
                      "q_rank": a.q_rank, "kv_rank": a.kv_rank, "latent_eps": a.latent_norm_eps}
    else:
        attention |= {"nope": a.head_dim}
    routing: dict[str, Any] = {}
    if moe is not None:
        routing = {"experts": moe.experts, "experts_per_token": moe.experts_per_token,
                   "groups": moe.groups, "groups_per_token": moe.groups_per_token,
                   "group_score": moe.group_score, "score": moe.score,
                   "normalize": moe.is_normalized, "scale": moe.scale}
    yarn = dataclasses.asdict(cfg.rope.yarn) if cfg.rope.yarn else None
    return ReferenceConfig(**attention, **routing, theta=cfg.rope.theta, yarn=yarn,
                           eps=cfg.norm_eps, mtp_depth=cfg.mtp_depth)


def batch_arrays(rows: int, length: int, vocab: int, seed: int) -> tuple[np.ndarray, ...]:
    """Tokens, segments and weights [B, T+1]: packed documents, padding in front row's tail."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, vocab, (rows, length + 1), dtype=np.int32)
    segments = np.ones((rows, length + 1), np.int32)
    segments[:, length // 2 :] = 2
    segments[0, -2:] = 0
    weights = rng.choice([0.0, 0.5, 1.0, 2.0], (rows, length + 1), p=[0.1, 0.2, 0.5, 0.2])
    return tokens, segments, weights


def close(actual: Any, expected: Any, rtol: float = RTOL) -> None:
    """Equal up to `rtol` of the largest entry."""
    actual, expected = np.asarray(actual), np.asarray(expected)
    size = np.abs(expected).max(initial=0.0)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=rtol * max(size, 1e-3))


def compiled(f: Any) -> Any:
    """Jit without the compiler's optimizations: tests run each program once or twice."""
    return jax.jit(f, compiler_options={"xla_backend_optimization_level": 0,
                                        "xla_llvm_disable_expensive_passes": True})


def gradients_close(gradient: Any, f: Any, p: Any, seed: int = 0) -> None:
    """Hold each leaf of `gradient` against the reference's scalar `f` at `p`, along a direction.

    The direction is random and mixes every number of the leaf, so one wrong number shows; the
    complex step is exact.
    """
    rng = np.random.default_rng(seed)
    leaves, structure = jax.tree.flatten(p)
    names = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(p)]
    gradients = jax.tree.leaves(gradient)
    assert [g.shape for g in gradients] == [leaf.shape for leaf in leaves]
    for i, (name, g) in enumerate(zip(names, gradients)):
        along = [np.zeros(leaf.shape) for leaf in leaves]
        along[i] = rng.standard_normal(g.shape)
        exact = trees.directional_gradient(f, p, structure.unflatten(along))
        size = np.linalg.norm(g) * np.linalg.norm(along[i])
        error = abs(float(np.sum(np.asarray(g, np.float64) * along[i])) - exact)
        assert error <= RTOL * size + 1e-13, f"{name}: {error} against {exact}"


def pulled(f: Any, cotangent: Any, *args: Any) -> tuple[Any, Any]:
    """Value of `f` at `args`, and the gradients that `cotangent` pulls back, in one program."""

    def both(cotangent: Any, *args: Any) -> tuple[Any, Any]:
        y, pull = jax.vjp(f, *args)
        return y, pull(cotangent)

    return jax.tree.map(np.asarray, compiled(both)(cotangent, *args))


def shapes_within(jaxpr: Any) -> set[tuple[tuple[int, ...], Any]]:
    """Shape and dtype of every value of a jaxpr and of those inside it."""
    found = set()
    for equation in jaxpr.eqns:
        found |= {(v.aval.shape, v.aval.dtype) for v in equation.outvars}
        for parameter in jax.tree.leaves(
            equation.params, is_leaf=lambda a: hasattr(a, "eqns") or hasattr(a, "jaxpr")
        ):
            inner = getattr(parameter, "jaxpr", parameter)
            if hasattr(inner, "eqns"):
                found |= shapes_within(inner)
    return found
