"""The engine's side of the device: weights, pages and slots on it, and programs compiled at start.

Every program has its shape before the first request comes; none is compiled later. Rows that decode
are filled up to the next of a few numbers of rows.

A row's bits must not depend on its company. Within one program they do not: products of a row are
those of the row. Between programs of other numbers of rows they do where a library takes another
kernel (XLA on a CPU: for one row, for more than 32, and for tiny matrices). So it is tried on the
machine at hand, and numbers of rows that give other bits than the largest are left out.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dsjax.config.model import MLAConfig
from dsjax.errors import UserError
from dsjax.infer import programs
from dsjax.infer.engine import steps
from dsjax.infer.engine.config import pages_of
from dsjax.infer.engine.request import Row
from dsjax.infer.engine.steps import Given, Served, Slots
from dsjax.infer.generate import ready
from dsjax.infer.model import Model
from dsjax.infer.offload import cache as offload
from dsjax.infer.offload import serve as layered
from dsjax.infer.offload.cache import ExpertCache
from dsjax.infer.sample import Sampling, sampling_params
from dsjax.layers import mla, paged
from dsjax.model import transformer
from dsjax.numerics.precision import value
from dsjax.ops import experts as op
from dsjax.params import key_of


@dataclass(frozen=True)
class Setting:
    """How requests are served; none of it but `draft` and `page_dtype` changes a token."""

    slots: int = 16
    """Rows that read their prompt or decode at once."""
    max_len: int | None = None
    """Positions of a request, prompt and new tokens; None is the model's context."""
    pages: int | None = None
    """Pages of the cache; None has room for every slot's longest request."""
    page_size: int = 32
    """Positions of a page."""
    chunk: int = 256
    """Tokens of a prompt that are read at once."""
    budget: int | None = None
    """Tokens of a step, of prompts and of rows that decode; None has room for every slot's pass and
    for a piece of a prompt beside them."""
    max_queue: int = 256
    """Requests that wait at most."""
    draft: bool = False
    """Whether the model's MTP modules draft."""
    page_dtype: str = "activations"
    """`fp8` holds latents in 8 bits."""
    top_logprobs: int = 20
    """Likeliest tokens whose log-probabilities can be asked for."""


PIECES = (64,)
"""Tokens of the programs that read a prompt's last piece, beside `chunk`."""

TRIAL_STEPS = 5
TRIAL = 200
"""Tokens at most of a text by which programs are tried: sums over few hide their order."""


class Device:
    """Everything that lies on the device, and what it is asked to do."""

    def __init__(self, model: Model, setting: Setting):
        if model.mesh is not None:
            raise UserError("the engine serves on one device; leave --parallel out, or continue "
                            "prompts on several with dsjax generate")
        if setting.page_dtype == "fp8" and not isinstance(model.cfg.attention, MLAConfig):
            raise UserError("pages of 8 bits hold latents, and this model's attention has none; "
                            "leave --page-dtype out")
        self.depth = model.cfg.mtp_depth if setting.draft else 0
        self.experts = model.experts
        """The cache of routed experts; None where all of them are on the device."""
        if setting.draft and model.experts is not None:
            raise UserError(offload.NO_DRAFTS)
        if setting.draft and not self.depth:
            raise UserError("drafting needs an MTP module, but the model has mtp_depth=0; leave "
                            "--draft out, or train with --model.mtp-depth 1")
        self.max_len = model.context if setting.max_len is None else setting.max_len
        self.setting = setting
        self.width = paged.table_width(self.max_len + 2 * self.depth, setting.page_size)
        longest = pages_of(self.max_len, setting.page_size, self.depth)
        self.pages = setting.pages or setting.slots * longest
        self.budget = setting.budget or setting.slots * (self.depth + 1) + setting.chunk
        if model.experts is None:
            params, self.cfg = ready(model.params, model.cfg, model.backend)
            self.params = transformer.written_out(params)
        else:
            self.params, self.cfg = model.params, model.cfg
        self.reading = dataclasses.replace(model.backend, attend_cached=paged.attend)
        self.backend = dataclasses.replace(self.reading, dispatch=_every_row)
        self.served = self._empty()
        if self.experts is None:
            self._compile()
        else:
            self._begin_layers(self.experts)
        self.is_invariant = self._choose_rows()
        """False if a row's bits depend on its place among the others on this machine, or if pages
        are too few to try."""
        self.served = self._empty()

    def _empty(self) -> Served:
        """Pages and slots before the first request."""
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
        return Served(slots, pools)

    def _compile(self) -> None:
        """Compile every program there will be, as many at once as there are cores."""
        static = {"cfg": self.cfg, "backend": self.backend}
        served, number = self.served, jnp.int32(0)
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            def compiled(function: Any, *args: Any, **static: Any) -> Future[Any]:
                return pool.submit(programs.compiled, function, *args, **static)

            advance = {rows: compiled(
                steps.advance, self.params, served, self._rows([], [], False, rows), **static,
                top=self.setting.top_logprobs) for rows in self._buckets()}
            read = {length: compiled(
                steps.read, self.params, served, self._piece(0, [], 0, 0), cfg=self.cfg,
                backend=self.reading, length=length) for length in self._lengths()}
            admit = compiled(steps.admit, served, number, self._row([0], 1, Sampling()))
            copy = compiled(steps.copy, served, number, number)
        self._advance = {rows: program.result() for rows, program in advance.items()}
        self._read = {length: program.result() for length, program in read.items()}
        self._admit, self._copy = admit.result(), copy.result()

    def _begin_layers(self, experts: ExpertCache) -> None:
        """Make the programs that run layer by layer, and call each once so that it is compiled."""
        own = layered.Programs(self.params, self.cfg, self.reading, experts)
        self._admit, self._copy = steps.admit, steps.copy
        self._advance = {rows: functools.partial(own.advance, top=self.setting.top_logprobs)
                         for rows in self._buckets()}
        self._read = {length: functools.partial(own.read, length=length)
                      for length in self._lengths()}
        self._put(0, [0], Sampling())
        for read in self._read.values():
            self.served = read(self.params, self.served, self._piece(0, [], 0, 0))
        for rows, advance in self._advance.items():
            self.served, _ = advance(self.params, self.served, self._rows([], [], False, rows))
        self.copy([(0, 0)])

    def _lengths(self) -> list[int]:
        """Tokens of the programs that read."""
        return [*(n for n in PIECES if n < self.setting.chunk), self.setting.chunk]

    def _buckets(self) -> list[int]:
        """Powers of two, a factor of four apart, the last of which holds all slots.

        Of other numbers of rows the last ones may be left to another kernel.
        """
        most = max((self.setting.slots - 1).bit_length(), 1)
        return [2**n for n in range(most, 0, -2)][::-1]

    def _choose_rows(self) -> bool:
        """Leave out programs in which two rows get other bits than in the largest, tried."""
        largest = max(self._advance)
        length = min(self.max_len, self.pages // 2 * self.setting.page_size, TRIAL)
        length -= TRIAL_STEPS * (self.depth + 1)
        if length < 1 or self.setting.slots == 1:
            self._advance = {largest: self._advance[largest]}
            return self.setting.slots == 1
        slots = range(self.setting.slots)
        wanted = self._trial(largest, slots, length)
        for rows in sorted(self._advance)[:-1]:
            if not _same(wanted, self._trial(rows, slots[:rows], length)):
                del self._advance[rows]
        return _same(wanted, self._trial(largest, slots[::-1], length))

    def _trial(self, rows: int, order: Sequence[int], length: int) -> Any:
        """Decode some steps in the first slots; what the first two were given, and their pages."""
        each = -(-(length + TRIAL_STEPS * (self.depth + 1)) // self.setting.page_size)
        slots = [slot for slot in order if (slot + 1) * each <= self.pages][:rows]
        tables = [range(slot * each, (slot + 1) * each) for slot in slots]
        self.served = self._empty()
        for slot, pages in zip(slots, tables):
            text = np.random.default_rng(slot).integers(0, self.cfg.vocab, length)
            self._put(slot, text.tolist(), Sampling(temperature=float(slot % 2)))
            for start in range(0, length - 1, self.setting.chunk):
                self.read(slot, pages, start, min(start + self.setting.chunk, length - 1))
        given = [jax.device_get(self.advance(slots, tables, True, rows))
                 for _ in range(TRIAL_STEPS)]
        first = [slots.index(slot) for slot in (0, 1)]
        pools = self.served.pools
        return (jax.tree.map(lambda a: a[first], given),
                jax.tree.map(lambda a: np.asarray(a[:, : 2 * each]), pools.main),
                jax.tree.map(lambda a: np.asarray(a[: 2 * each]), pools.mtp))

    @property
    def programs(self) -> int:
        """Programs that were compiled."""
        return 2 + len(self._read) + len(self._advance)

    def admit(self, slot: int, row: Row) -> None:
        """Put a row's text into a slot."""
        request = row.request
        of = self._row(row.tokens, len(request.prompt), request.sampling, row.sample)
        self.served = self._admit(self.served, jnp.int32(slot), of)

    def _put(self, slot: int, tokens: Sequence[int], sampling: Sampling) -> None:
        self.served = self._admit(self.served, jnp.int32(slot),
                                  self._row(tokens, len(tokens), sampling))

    def copy(self, copies: Sequence[tuple[int, int]]) -> None:
        """Copy pages, (source, destination)."""
        for source, to in copies:
            self.served = self._copy(self.served, jnp.int32(source), jnp.int32(to))

    def read(self, slot: int, pages: Sequence[int], start: int, stop: int) -> None:
        """Read a piece of a slot's text into its pages."""
        length = next(n for n in self._read if n >= stop - start)
        self.served = self._read[length](self.params, self.served,
                                         self._piece(slot, pages, start, stop))

    def advance(self, slots: Sequence[int], tables: Sequence[Sequence[int]],
                wants_top: bool, rows: int = 0) -> Given:
        """Decode the newest token of some slots; what comes is read later.

        `rows` are those of the program at least.
        """
        rows = next(n for n in self._advance if n >= max(rows, len(slots)))
        self.served, given = self._advance[rows](
            self.params, self.served, self._rows(slots, tables, wants_top, rows))
        return given

    def _row(self, tokens: Sequence[int], prompt_len: int, sampling: Sampling,
             sample: int = 0) -> steps.Row:
        text = np.zeros(self.width * self.setting.page_size, np.int32)
        text[: len(tokens)] = tokens
        return steps.Row(jnp.asarray(text), jnp.int32(len(tokens) - 1), jnp.int32(prompt_len),
                         jax.random.fold_in(key_of(sampling.seed), sample),
                         sampling_params([sampling], "any"))

    def _piece(self, slot: int, pages: Sequence[int], start: int, stop: int) -> steps.Piece:
        return steps.Piece(jnp.int32(slot), self._tables([pages], 1), jnp.int32(start),
                           jnp.int32(stop))

    def _rows(self, slots: Sequence[int], tables: Sequence[Sequence[int]], wants_top: bool,
              rows: int) -> steps.Rows:
        """A program's rows; those beyond the slots are no slot."""
        out = np.full(rows, self.setting.slots, np.int32)
        out[: len(slots)] = slots
        return steps.Rows(jnp.asarray(out), self._tables(tables, rows), jnp.bool_(wants_top))

    def _tables(self, tables: Sequence[Sequence[int]], rows: int) -> Any:
        """Tables of a program's rows, filled up with the spare page."""
        out = np.full((rows, self.width), self.pages, np.int32)
        for row, pages in enumerate(tables):
            out[row, : len(pages)] = pages[: self.width]
        return jnp.asarray(out)


def _every_row(x, experts, weights, w_gate_up, w_down, mlp):
    """All experts on the device, each with room for every token: none goes another way for others.
    """
    assignments = value(w_down).shape[0] * x.shape[0]
    y = op.experts_batched(x, experts, weights, w_gate_up, w_down, mlp=mlp,
                           assignments=assignments)
    return y, jnp.zeros(())


def _same(a: Any, b: Any) -> bool:
    """Whether two trees hold the same bits."""
    return all(x.tobytes() == y.tobytes() for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b)))
