"""Rows to batches: a shuffled endless stream that resumes exactly, and held-out batches.

Training rows form one endless sequence, shuffled anew each epoch by grain from the seed alone,
and read by position. A global batch is the next hosts * n positions; process h of `hosts` takes the
h-th n of them, the part that `jax.make_array_from_process_local_data` wants from it. So row i of a
global batch does not depend on the number of processes, the batch size may change at every call,
and the state is one number.

Axes: B rows of this process's batch, T row length, V vocabulary.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from dsjax.data.pack import Row, Rows
from dsjax.errors import UserError


class RowStream:
    """An endless shuffled stream of rows; every process makes its own with the same rows and seed.

    With `is_prefetching` a thread reads the next batch ahead, assuming the size of the last; it
    never changes what comes.
    """

    def __init__(
        self,
        rows: Rows,
        *,
        seed: int = 0,
        host: int = 0,
        hosts: int = 1,
        is_prefetching: bool = True,
    ):
        import grain  # takes a second or two to import

        if not 0 <= host < hosts:
            raise ValueError(f"host={host} is outside [0, hosts={hosts})")
        if not len(rows):
            raise UserError("there are no rows to train on; give more text or shorter rows")
        self._data = grain.MapDataset.source(rows).seed(seed).shuffle().repeat()
        self._identity = {"rows": len(rows), "length": rows.length, "seed": seed}
        self._host, self._hosts = host, hosts
        self._position = 0
        self._reader = ThreadPoolExecutor(1, "rows") if is_prefetching else None
        self._ahead: tuple[tuple[int, int], Future[Row]] | None = None

    def next_batch(self, n: int) -> Row:
        """Return this process's n rows: tokens, segments, weights [B, T+1].

        Every process must ask for the same n; the global batch has n * hosts rows.
        """
        if n < 1:
            raise ValueError(f"a batch of {n} rows is none; ask for at least 1")
        wanted = (self._position, n)
        if self._ahead is not None and self._ahead[0] == wanted:
            batch = self._ahead[1].result()
        else:
            batch = self._read(*wanted)
        self._position += n * self._hosts
        if self._reader is not None:
            wanted = (self._position, n)
            self._ahead = (wanted, self._reader.submit(self._read, *wanted))
        return batch

    def state(self) -> dict[str, int]:
        """Return what `restore` needs, as JSON; it does not depend on the process."""
        return {"position": self._position, **self._identity}

    def restore(self, state: dict[str, int]) -> None:
        """Go on exactly where `state` was taken, whatever the number of processes then and now."""
        for name, mine in self._identity.items():
            if state.get(name) != mine:
                raise UserError(
                    f"the saved data position is for {name}={state.get(name)}, this run has "
                    f"{name}={mine}; resume with the same data, packing and seed"
                )
        self._position = int(state["position"])

    def close(self) -> None:
        """Stop the reading thread."""
        if self._reader is not None:
            self._reader.shutdown(cancel_futures=True)
            self._reader, self._ahead = None, None

    def _read(self, position: int, n: int) -> Row:
        first = position + self._host * n
        return _stack([self._data[i] for i in range(first, first + n)])


def heldout_batches(
    rows: Rows, n: int, token_sizes: np.ndarray, *, most: int = 0, host: int = 0, hosts: int = 1
) -> Iterator[tuple[Row, int]]:
    """Yield this process's (batch of n rows, bytes of text its targets stand for), in fixed order.

    `token_sizes` [V] is `tokenizer.token_bytes`. The last batch is filled up with rows of weight 0;
    every process yields equally many. Bits per byte = sum of nats / ln 2 / sum of bytes. Where
    there are more than `most` batches (0: no limit), so many are read, spread evenly over all.
    """
    if n < 1:
        raise ValueError(f"a batch of {n} rows is none; ask for at least 1")
    bases: Sequence[int] = range(0, len(rows), n * hosts)
    if 0 < most < len(bases):
        bases = [bases[(2 * i + 1) * len(bases) // (2 * most)] for i in range(most)]
    for base in bases:
        first = base + host * n
        read = [rows[i] for i in range(first, min(first + n, len(rows)))]
        batch = _stack(read + [_nothing(rows)] * (n - len(read)))
        yield batch, target_bytes(batch, token_sizes)


def target_bytes(batch: Row, token_sizes: np.ndarray) -> int:
    """Return how many bytes of text the targets of a batch stand for. token_sizes [V]."""
    return int(token_sizes[batch["tokens"]][batch["weights"] > 0].sum(dtype=np.int64))


def _nothing(rows: Rows) -> Row:
    return {name: np.zeros_like(a) for name, a in rows[0].items()}


def _stack(rows: list[Row]) -> Row:
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}
