"""Schedules of forwards and full backwards: GPipe, 1F1B, interleaved 1F1B.

GPipe: Huang et al., arXiv 1811.06965. 1F1B (PipeDream-flush) and its interleaved form, in which a
rank holds several thin stages P apart: Narayanan et al., arXiv 2104.04473. P is the number of
ranks, M of microbatches.
"""

from dsjax.errors import UserError
from dsjax.pipeline.schedules.table import Chunk, Schedule, Word, bw, f, number


def gpipe(ranks: int, microbatches: int) -> Schedule:
    """Do all forwards, then all backwards: bubble (P-1)(F+BW), M live activations."""
    words = [f(0)] * microbatches + [bw(0)] * microbatches
    return _straight("gpipe", ranks, microbatches, [words] * ranks)


def one_f_one_b(ranks: int, microbatches: int) -> Schedule:
    """Alternate F and BW after P-1-rank forwards: bubble (P-1)(F+BW), P live activations."""

    def words(rank: int) -> list[Word]:
        warmup = min(ranks - 1 - rank, microbatches)
        return [f(0)] * warmup + [f(0), bw(0)] * (microbatches - warmup) + [bw(0)] * warmup

    return _straight("1f1b", ranks, microbatches, [words(rank) for rank in range(ranks)])


def interleaved(ranks: int, microbatches: int, chunks: int = 2) -> Schedule:
    """Alternate F and BW over `chunks` thinner stages a rank: bubble (P-1)(F+BW) of those.

    Microbatches go in rounds of P: a round passes through every chunk before the next one enters.
    """
    if microbatches % ranks:
        below = microbatches - microbatches % ranks
        values = f"{below} or {below + ranks}" if below else f"{ranks}"
        raise UserError(
            f"interleaved sends microbatches in rounds of ranks={ranks}, which does not divide "
            f"microbatches={microbatches}; choose microbatches {values}"
        )
    total = microbatches * chunks
    order = [k // ranks % chunks for k in range(total)]

    def words(rank: int) -> list[Word]:
        forward = [f(chunk) for chunk in order]
        backward = [bw(chunks - 1 - chunk) for chunk in order]
        warmup = min(2 * (ranks - 1 - rank) + (chunks - 1) * ranks, total)
        paired = [word for pair in zip(forward[warmup:], backward) for word in pair]
        return forward[:warmup] + paired + backward[total - warmup :]

    stages = ranks * chunks
    table = tuple(
        number(words(rank), [Chunk(chunk, chunk * ranks + rank) for chunk in range(chunks)])
        for rank in range(ranks)
    )
    home = tuple(stage % ranks for stage in range(stages))
    return Schedule("interleaved", ranks, stages, microbatches, (home,), table)


def _straight(name: str, ranks: int, microbatches: int, words: list[list[Word]]) -> Schedule:
    """Number the words of a pipeline whose rank r holds stage r."""
    table = tuple(number(words[rank], [Chunk(0, rank)]) for rank in range(ranks))
    return Schedule(name, ranks, ranks, microbatches, (tuple(range(ranks)),), table)
