"""The engine's side of the device: weights, pages and slots on it, and programs compiled at start.

Every program has its shape before the first request comes; none is compiled later. Rows that decode
are filled up to the next of a few numbers of rows.

Over a mesh every rank has its own slots and pages, and all run one program: what is asked comes as
a list by rank, None where a rank has nothing to do.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from dsjax.config.model import MLAConfig, ModelConfig
from dsjax.errors import UserError
from dsjax.infer.decode import Given
from dsjax.infer.engine import experts, steps, trial
from dsjax.infer.engine.asked import Asked, Piece, Text, part_of
from dsjax.infer.engine.config import Setting, pages_of
from dsjax.infer.engine.experts import Placement
from dsjax.infer.engine.place import ON_A_RANK, Place
from dsjax.infer.engine.steps import Served, Slots
from dsjax.infer.generate import ready
from dsjax.infer.model import Model
from dsjax.infer.offload import cache as offload
from dsjax.infer.offload import serve as layered
from dsjax.infer.offload.cache import ExpertCache
from dsjax.infer.sample import Sampling, sampling_params
from dsjax.layers import mla, paged
from dsjax.layers.backend import Backend, attend_read
from dsjax.layers.moe import MoEParams
from dsjax.model.transformer import TransformerParams
from dsjax.runtime.backend import for_rank

PIECES = (64,)
"""Tokens of the programs that read a prompt's last piece, beside `chunk`."""


class Device:
    """Everything that lies on the devices, and what they are asked to do."""

    def __init__(self, model: Model, setting: Setting,
                 loads: NDArray[np.float64] | None = None, is_consumed: bool = False):
        """Place the model; `loads` [L, E], if known, say how its experts are spread.

        Of a consumed model the layers' arrays are gone afterwards; otherwise they are there twice.
        """
        _check(model, setting, loads)
        self.depth = model.cfg.mtp_depth if setting.draft else 0
        self.max_len = model.context if setting.max_len is None else setting.max_len
        self.setting = setting
        self.width = paged.table_width(self.max_len + 2 * self.depth, setting.page_size)
        longest = pages_of(self.max_len, setting.page_size, self.depth)
        self.pages = setting.pages or setting.slots * longest
        self.budget = setting.budget or setting.slots * (self.depth + 1) + setting.chunk
        self.place = Place(model.mesh)
        self.asked = Asked(self.place, setting.slots, self.pages, self.width, setting.page_size,
                           self.depth, setting.is_deterministic)
        self.experts = model.experts
        """The cache of routed experts; None where all of them are on the device."""
        self.placement = None
        """Place of each expert, if several devices share them; their loads are then measured."""
        if model.layout.expert > 1:
            self.placement = experts.in_order(model.cfg, model.layout.expert)
        if loads is not None:
            self.placement = experts.planned(loads, setting.redundant_experts, model.cfg,
                                             model.layout)
        self._ready = functools.partial(
            _ready, cfg=model.cfg, backend=model.backend, place=self.place,
            copies=None if loads is None else self.placement)
        if self.experts is None:
            self.params, self.cfg = self._ready(model.params, is_consumed=is_consumed)
        else:
            self.params, self.cfg = model.params, model.cfg
        self.reading, self.backend = backends_of(model, self.cfg, setting.keep_routes)
        self.reset()
        if self.experts is None:
            self._compile()
        else:
            self._begin_layers(self.experts)
        self.is_invariant = trial.choose_rows(self)
        """False if a row's bits depend on its place among the others on this machine, or if pages
        are too few to try."""
        if setting.is_deterministic and not self.is_invariant:
            raise UserError("on this machine a row's bits depend on its place among the others, or "
                            f"{self.pages} pages are too few to try; a deterministic engine wants "
                            "one row (--slots 1), or more pages")
        self.reset()

    @property
    def ranks(self) -> int:
        """Devices with slots and pages of their own."""
        return self.place.ranks

    def reset(self) -> None:
        """Forget all texts and pages."""
        self.served = self.place.filled(self._empty)

    def exchange(self, params: TransformerParams) -> None:
        """Take other parameters, which lie as the model's did, and forget all texts and pages.

        Nothing is compiled. Embedding, head, norms outside of layers and layers that are a stack of
        their own are the very arrays given; other layers are copied out of their stack, and in FP8
        all matrices are quantized.
        """
        if self.experts is not None:
            raise UserError("an engine with a cache of experts reads them from files, so its "
                            "parameters stay; leave --experts-cache out")
        self.params, _ = self._ready(params, is_consumed=False)
        self.reset()

    def _empty(self) -> Served:
        """Pages and slots of a rank before the first request."""
        setting, cfg, positions = self.setting, self.cfg, self.width * self.setting.page_size
        form = mla.FP8_PAGES if setting.page_dtype == "fp8" else paged.AS_MADE
        count = setting.slots
        slots = Slots(
            tokens=jnp.zeros((count, positions), jnp.int32),
            newest=jnp.zeros(count, jnp.int32),
            prompt_len=jnp.zeros(count, jnp.int32),
            keys=jax.random.split(jax.random.key(0), count),
            sampling=sampling_params([Sampling(temperature=0)] * count, "any"),
            recent=jnp.zeros((count, 2 * self.depth, cfg.d_model), self.backend.dtype),
        )
        pools = steps.empty_pools(self.params, cfg, self.backend, pages=self.pages,
                                  size=setting.page_size, depth=self.depth, form=form)
        loads = hidden = None
        if self.placement is not None:
            names = [name for name, stack in self.params.stacks.items()
                     if isinstance(stack.ffn, MoEParams)]
            loads = {name: jnp.zeros((1, self.placement.of.shape[1])) for name in names}
        if setting.is_deterministic and self.depth:
            positions = 2 * self.depth + max(self._buckets()) * (self.depth + 1)
            hidden = jnp.zeros((positions, cfg.d_model), self.backend.dtype)
        return Served(slots, pools, loads, hidden)

    def _compile(self) -> None:
        """Compile every program there will be, as many at once as there are cores."""
        lengths = [] if self.setting.is_deterministic else self._lengths()
        nobody: list[Any] = [None] * self.ranks
        no_rows: list[list[Any]] = [[] for _ in nobody]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            def compiled(step: Any, asked: Any, whole: Any = (), **static: Any) -> Future[Any]:
                return pool.submit(self.place.compiled, step, whole, self.served, asked, **static)

            advance = {rows: compiled(
                steps.advance, self.asked.rows(no_rows, no_rows, False, rows), (self.params,),
                cfg=self.cfg, backend=self.backend, top=self.setting.top_logprobs)
                for rows in self._buckets()}
            read = {length: compiled(
                steps.read, self.asked.pieces(nobody), (self.params,), cfg=self.cfg,
                backend=self.reading, length=length) for length in lengths}
            admit = compiled(steps.admit, self.asked.texts(nobody))
            copy = compiled(steps.copy, self.asked.pairs(nobody))
            measure = compiled(steps.measure, self._nothing()) if self.placement else None
            routes = (compiled(steps.routes, self.asked.tables(no_rows))
                      if self.setting.keep_routes else None)
        self.decoding = {rows: program.result() for rows, program in advance.items()}
        """Programs that decode, by their rows: those that give a row the same bits."""
        self._read = {length: program.result() for length, program in read.items()}
        self._admit, self._copy = admit.result(), copy.result()
        self._measure = None if measure is None else measure.result()
        self._routes = None if routes is None else routes.result()

    def _begin_layers(self, cache: ExpertCache) -> None:
        """Make the programs that run layer by layer, and call each once so that it is compiled."""
        own = layered.Programs(self.params, self.cfg, self.reading, cache)
        self._admit, self._copy = own.admit, own.copy
        self.decoding = {rows: functools.partial(own.advance, top=self.setting.top_logprobs)
                         for rows in self._buckets()}
        self._read = {length: functools.partial(own.read, length=length)
                      for length in self._lengths()}
        self._measure = self._routes = None
        self.admit([Text(0, (0,), 1, Sampling())])
        for length in self._read:
            self.read([Piece(0, (), 0, length)])
        for rows in self.decoding:
            self.advance([[]], [[]], False, rows)
        self.copy([None])

    def _lengths(self) -> list[int]:
        """Tokens of the programs that read."""
        return [*(n for n in PIECES if n < self.setting.chunk), self.setting.chunk]

    def _buckets(self) -> list[int]:
        """Powers of two, a factor of four apart, the last of which holds all slots.

        Of other numbers of rows the last ones may be left to another kernel.
        """
        most = max((self.setting.slots - 1).bit_length(), 1)
        return [2**n for n in range(most, 0, -2)][::-1]

    @property
    def programs(self) -> int:
        """Programs that were compiled."""
        return (2 + len(self._read) + len(self.decoding) + (self._measure is not None)
                + (self._routes is not None))

    def admit(self, texts: Sequence[Text | None]) -> None:
        """Put a text into a slot of each rank."""
        self.served = self._admit((), self.served, self.asked.texts(texts))

    def copy(self, pairs: Sequence[tuple[int, int] | None]) -> None:
        """Copy a page of each rank, (source, destination)."""
        self.served = self._copy((), self.served, self.asked.pairs(pairs))

    def read(self, pieces: Sequence[Piece | None]) -> None:
        """Read a piece of a text of each rank into its pages."""
        if self.setting.is_deterministic:
            self._read_as_decoded(pieces)
            return
        longest = max(piece.stop - piece.start for piece in pieces if piece)
        length = next(n for n in self._read if n >= longest)
        self.served = self._read[length]((self.params,), self.served, self.asked.pieces(pieces))

    def _read_as_decoded(self, pieces: Sequence[Piece | None]) -> None:
        """Read pieces by the largest program that decodes, as many positions at once as it has."""
        rows = max(self.decoding)
        length = rows * (self.depth + 1)
        longest = max(piece.stop - piece.start for piece in pieces if piece)
        for first in range(0, longest, length):
            parts = [part_of(piece, first, length) for piece in pieces]
            for is_main in (True, False)[: 1 + bool(self.depth)]:
                self.served, _ = self.decoding[rows](
                    (self.params,), self.served, self.asked.reading(parts, is_main, rows))

    def advance(self, slots: Sequence[Sequence[int]], tables: Sequence[Sequence[Sequence[int]]],
                wants_top: bool, rows: int = 0) -> Given:
        """Decode the newest token of some slots of each rank; what comes is `taken` later.

        `rows` are those of the program at least.
        """
        rows = next(n for n in self.decoding if n >= max(rows, *map(len, slots)))
        self.served, given = self.decoding[rows](
            (self.params,), self.served, self.asked.rows(slots, tables, wants_top, rows))
        return given

    def routes(self, tables: Sequence[Sequence[Sequence[int]]]) -> list[NDArray[np.int32]]:
        """Experts of all positions of some rows of each rank, [N, S, L, K]; waits for them."""
        assert self._routes is not None, "routes are kept"
        self.served, found = self._routes((), self.served, self.asked.tables(tables))
        return [a.astype(np.int32) for a in self.place.taken(found)]

    def measure(self) -> Any:
        """Count loads of experts anew; those until now can be read by `loads_of`."""
        assert self._measure is not None, "loads are measured where devices share experts"
        self.served, loads = self._measure((), self.served, self._nothing())
        return loads

    def loads_of(self, measured: Any) -> NDArray[np.float64]:
        """Loads of physical experts, of all ranks together, [L, P]."""
        return np.sum([[a[0] for a in of_rank.values()]
                       for of_rank in self.place.taken(measured)], axis=0, dtype=np.float64)

    def _nothing(self) -> Any:
        return self.place.put([np.int32(0)] * self.ranks)

    def taken(self, given: Given, wants_top: bool = True) -> list[Given]:
        """Bring what a step gave the rows of each rank to the host; likeliest tokens if wanted."""
        if not wants_top:
            given = dataclasses.replace(given, top_ids=None, top_logprobs=None)
        return self.place.taken(given)


def _check(model: Model, setting: Setting, loads: NDArray[np.float64] | None) -> None:
    """Refuse what cannot be served."""
    if setting.redundant_experts and model.experts is not None:
        raise UserError(f"{setting.redundant_experts} redundant experts are spread over devices, "
                        "and a cache of experts is of one; leave --redundant-experts or "
                        "--experts-cache out")
    if loads is None and setting.redundant_experts:
        raise UserError(f"{setting.redundant_experts} redundant experts are copies of the busiest "
                        "ones, and no loads are known; give --expert-loads, a run's folder or what "
                        "--save-expert-loads wrote")
    if loads is not None and model.layout.expert == 1:
        raise UserError("loads of experts spread them over the devices of --parallel.expert, and "
                        "there is one; leave --expert-loads out, or use more")
    if setting.page_dtype == "fp8" and not isinstance(model.cfg.attention, MLAConfig):
        raise UserError("pages of 8 bits hold latents, and this model's attention has none; "
                        "leave --page-dtype out")
    if setting.draft and model.experts is not None:
        raise UserError(offload.NO_DRAFTS)
    if setting.is_deterministic and model.experts is not None:
        raise UserError("a deterministic engine reads prompts by the programs that decode, which "
                        "with --experts-cache are others; leave one of the two out")
    if setting.keep_routes and (model.cfg.moe is None or model.experts is not None):
        raise UserError("routes are kept of a mixture whose experts are all on the device, and "
                        "this model has none there; leave keep_routes out")
    if setting.draft and not model.cfg.mtp_depth:
        raise UserError("drafting needs an MTP module, but the model has mtp_depth=0; leave "
                        "--draft out, or train with --model.mtp-depth 1")
    if jax.process_count() > 1:
        raise UserError(f"the engine serves from one process, and there are {jax.process_count()}; "
                        "start one process for each group of devices and share the requests among "
                        "them, or continue prompts with dsjax generate")


def _ready(params: TransformerParams, *, cfg: ModelConfig, backend: Backend, place: Place,
           copies: Placement | None, is_consumed: bool) -> tuple[TransformerParams, ModelConfig]:
    """Parameters as the programs read them: quantized, written out, experts in their places."""
    params, cfg = ready(params, cfg, backend, is_consumed)
    params = place.written_out(params, is_consumed)
    return params if copies is None else experts.with_copies(params, copies, place), cfg


def backends_of(model: Model, cfg: ModelConfig,
                is_routed: bool = False) -> tuple[Backend, Backend]:
    """Make the backends that read prompts and that decode; on a mesh a rank's part of both.

    Pages are attended to where they lie, unless the model came with an attention of its own.
    """
    attend = model.backend.attend_cached
    attend = paged.attend if attend is attend_read else attend
    if model.mesh is None:
        reading = dataclasses.replace(model.backend, attend_cached=attend, keep_routes=is_routed)
        return reading, dataclasses.replace(reading, dispatch=experts.every_row)
    rank = dataclasses.replace(for_rank(model.backend, cfg, model.layout), attend_cached=attend,
                               layout=ON_A_RANK, keep_routes=is_routed)
    if cfg.moe is not None:
        rank = dataclasses.replace(rank, dispatch=functools.partial(
            experts.on_ranks, layout=model.layout))
    return rank, rank
