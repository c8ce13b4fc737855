"""Slots of a cache of experts, in plain Python: who lies where, and who goes.

Experts are keys, (mixture layer, expert). All layers share the slots, so that a layer whose tokens
use many experts may hold more of them. Who was used longest ago goes; of those that were last used
together the one whose measured load is lowest. Before anything was used, the slots are filled by
measured loads alone.

    slots == free + held        a key lies in one slot, a slot holds one key
"""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Collection, Mapping
from dataclasses import dataclass

Key = tuple[int, int]
"""Mixture layer, counted from the first, and expert."""


@dataclass(frozen=True)
class Held:
    """Slots of the keys that were asked for, and which of them must be filled first."""

    slots: dict[Key, int]
    missing: tuple[Key, ...]
    """Keys whose slots hold nothing of theirs yet, heaviest load first."""
    evicted: tuple[Key, ...]
    """Keys that went."""


class Slots:
    """A table of which expert lies in which slot, by time of last use."""

    def __init__(self, count: int, loads: Mapping[Key, float] | None = None) -> None:
        """Make `count` empty slots; `loads` are tokens that chose each expert when measured."""
        self.count = count
        self._loads = loads or {}
        self._slot: OrderedDict[Key, int] = OrderedDict()  # by last use, the longest ago first
        self._free = list(range(count))[::-1]

    def find(self, key: Key) -> int | None:
        """Slot of a key; None where it has none."""
        return self._slot.get(key)

    def __len__(self) -> int:
        return len(self._slot)

    def __contains__(self, key: Key) -> bool:
        return key in self._slot

    @property
    def keys(self) -> tuple[Key, ...]:
        """Keys that lie in slots, in the order in which they would go."""
        return tuple(self._slot)

    def first_fill(self) -> Held:
        """Give the experts of the heaviest loads the slots that are free, if loads were measured.
        """
        ranked = sorted((key for key in self._loads if key not in self._slot), key=self._weight)
        heaviest = ranked[len(ranked) - min(len(self._free), len(ranked)):]
        return self.hold(heaviest)

    def hold(self, keys: Collection[Key]) -> Held:
        """Give every key a slot and note their use; none of them makes another of them go.

        keys: distinct, at most `count`.
        """
        wanted = set(keys)
        assert len(wanted) == len(keys), "keys are distinct"
        assert len(wanted) <= self.count, f"{len(wanted)} experts in {self.count} slots"
        missing = [key for key in wanted if key not in self._slot]
        going = (key for key in self._slot if key not in wanted)
        evicted = tuple(itertools.islice(going, max(len(missing) - len(self._free), 0)))
        for key in evicted:
            self._free.append(self._slot.pop(key))
        for key in sorted(wanted, key=self._weight):  # the heaviest is the newest
            if key not in self._slot:
                self._slot[key] = self._free.pop()
            self._slot.move_to_end(key)
        return Held({key: self._slot[key] for key in wanted},
                    tuple(sorted(missing, key=self._weight, reverse=True)), evicted)

    def forget(self, keys: Collection[Key]) -> None:
        """Free the slots of keys, which were not filled after all."""
        for key in keys:
            self._free.append(self._slot.pop(key))

    def _weight(self, key: Key) -> tuple[float, Key]:
        """Load first; a key of its own, so that every order is one."""
        return (self._loads.get(key, 0.0), key)
