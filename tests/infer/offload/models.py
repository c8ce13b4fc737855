"""A small mixture as a resident model and as an offloaded one, with the same products in both."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from dsjax.checkpoint.reader import OnDevices
from dsjax.infer import default_backend
from dsjax.infer.offload.apart import experts_apart
from dsjax.infer.offload.cache import ExpertCache, Room
from dsjax.infer.offload.load import ready
from dsjax.infer.offload.store import InMemory, Store, split
from dsjax.layers.backend import single
from dsjax.model import transformer
from dsjax.ops.expert_stack import stack
from dsjax.runtime.backend import decoding
from tests import agreement

MOE = dataclasses.replace(agreement.V3_MOE, experts=9, experts_per_token=2)
CFG = dataclasses.replace(agreement.TINY, layers=4, moe=MOE, mtp_depth=0)
PARAMS = agreement.draw(transformer.specs(CFG), 2)


def apart(x, experts, weights, w_gate_up, w_down, mlp):
    """The products of an offloaded model, over all experts."""
    y = experts_apart(x, experts, weights, stack(w_gate_up, 2), stack(w_down, 1), mlp=mlp)
    return y.sum(axis=1), jnp.zeros(())


@functools.cache
def backends(precision=None):
    """A decoding backend, and the same with an offloaded model's products."""
    own = default_backend() if precision is None else decoding(single(precision))
    return own, dataclasses.replace(own, dispatch=apart)


def store(cls=Store):
    return cls(InMemory(split(OnDevices(CFG, PARAMS))[1]))


@functools.cache
def trunk(backend):
    """Parameters without routed experts, as `load` makes them."""
    layers = {name: p if name == "dense" else p.replace(ffn=p.ffn.replace(
        experts=p.ffn.experts.replace(w_gate_up=None, w_down=None)))
        for name, p in PARAMS.stacks.items()}
    return ready(PARAMS.replace(stacks=layers), CFG, backend)


def cache(experts, backend=None, cls=Store, **room):
    """A cache with room for so many experts, slots and what is on its way together."""
    there = store(cls)
    backend = backend or default_backend()
    return ExpertCache(there, CFG, backend.precision, Room(experts * there.expert_bytes, **room))


def same_bits(a, b):
    return all(np.asarray(x).tobytes() == np.asarray(y).tobytes()
               for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))
