"""Programs tried on the machine at hand: those that give a row other bits are left out.

A row's bits must not depend on its company. Within one program they do not: products of a row are
those of the row. Between programs of other numbers of rows they do where a library takes another
kernel (XLA on a CPU: for one row, for more than 32, and for tiny matrices). So a few texts are
decoded by each program, and numbers of rows that give other bits than the largest are left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from dsjax.infer.engine.asked import Piece, Text
from dsjax.infer.sample import Sampling

STEPS = 5
LONGEST = 200
"""Tokens at most of a text by which programs are tried: sums over few hide their order."""


Device = Any
"""The engine's device, which tries its programs when it is made."""


def choose_rows(device: Device) -> bool:
    """Leave out programs in which two rows get other bits than in the largest.

    False if a row's place in the largest changes its bits too, or in a deterministic engine the
    size of a prompt's pieces, or if pages are too few to try.
    """
    setting, largest = device.setting, max(device.decoding)
    length = min(device.max_len, device.pages // 2 * setting.page_size, LONGEST)
    length -= STEPS * (device.depth + 1)
    is_alone = setting.slots == 1 and not setting.is_deterministic
    if length < 1 or is_alone:
        device.decoding = {largest: device.decoding[largest]}
        return is_alone
    slots = range(setting.slots)
    wanted = _decoded(device, largest, slots, length)
    for rows in sorted(device.decoding)[:-1]:
        if not _same(wanted, _decoded(device, rows, slots[:rows], length)):
            del device.decoding[rows]
    if setting.is_deterministic:
        other = min(setting.chunk, length) // 2 | 1  # odd, so that pieces begin in other places
        if not _same(wanted, _decoded(device, largest, slots, length, other)):
            return False
    return _same(wanted, _decoded(device, largest, slots[::-1], length))


def _decoded(device: Device, rows: int, order: Sequence[int], length: int,
             chunk: int | None = None) -> Any:
    """Decode some steps in the first slots; what the first two were given, and their pages.

    `chunk` is the size of a prompt's pieces, by default the engine's.
    """
    setting, ranks = device.setting, range(device.ranks)
    chunk = chunk or setting.chunk
    each = -(-(length + STEPS * (device.depth + 1)) // setting.page_size)
    slots = [slot for slot in order if (slot + 1) * each <= device.pages][:rows]
    tables = [range(slot * each, (slot + 1) * each) for slot in slots]
    device.reset()
    for slot, pages in zip(slots, tables):
        texts = [np.random.default_rng([rank, slot]).integers(0, device.cfg.vocab, length)
                 for rank in ranks]
        sampling = Sampling(temperature=float(slot % 2))
        device.admit([Text(slot, text.tolist(), length, sampling) for text in texts])
        for start in range(0, length - 1, chunk):
            stop = min(start + chunk, length - 1)
            device.read([Piece(slot, pages, start, stop)] * len(ranks))
    given = [device.taken(device.advance([slots] * len(ranks), [tables] * len(ranks), True, rows))
             for _ in range(STEPS)]
    first = [slots.index(slot) for slot in range(min(setting.slots, 2))]
    pools, lead = device.served.pools, 0 if device.place.mesh is None else 1

    def first_pages(pools: Any, axis: int) -> Any:
        return jax.tree.map(lambda a: np.asarray(jax.lax.slice_in_dim(a, 0, 2 * each, axis=axis)),
                            pools)

    return (jax.tree.map(lambda a: a[first], given), first_pages(pools.main, lead + 1),
            first_pages(pools.mtp, lead))


def _same(a: Any, b: Any) -> bool:
    """True if two trees hold the same bits."""
    return all(x.tobytes() == y.tobytes() for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b)))
