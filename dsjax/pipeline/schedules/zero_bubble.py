"""Schedules that fill the bubble with weight-gradients: ZB-H1 (the report's ZB1P) and ZB-V.

Qi et al., arXiv 2401.10241. The next stage waits for the input-gradient B only, so the
weight-gradient W is free to move: late ranks, which start last, postpone theirs to the end of the
step. R is the number of ranks, P of stages.
"""

from dsjax.errors import UserError
from dsjax.pipeline.schedules.table import Chunk, Schedule, Word, b, f, number, w


def zb_h1(ranks: int, microbatches: int) -> Schedule:
    """Let rank r of 1F1B owe r weight-gradients: bubble (P-1)(F+B-W), P live activations.

    Rank r of 1F1B holds P-r activations; here the other r places hold what W still needs. (In the
    report, whose B is the full backward, this bubble reads (PP-1)(F+B-2W).)
    """

    def words(rank: int) -> list[Word]:
        warmup = min(ranks - 1 - rank, microbatches)
        spelled, pending = [f(0)] * warmup, 0
        for microbatch in range(microbatches):
            spelled += [f(0)] if warmup + microbatch < microbatches else []
            spelled += [b(0)] if pending < rank else [b(0), w]
            pending = min(pending + 1, rank)
        return spelled + [w] * pending

    table = tuple(number(words(rank), [Chunk(0, rank)]) for rank in range(ranks))
    return Schedule("zb-h1", ranks, ranks, microbatches, (tuple(range(ranks)),), table)


def zb_v(ranks: int, microbatches: int) -> Schedule:
    """Bend the pipeline into a V: rank r holds stages r and P-1-r, rank 0 input and loss.

    With F = B = W no rank waits between its first and its last operation; what remains is the
    (R-1)F in which the first microbatch reaches the last rank. At most P live activations of
    stages half as thick: 1F1B's memory.
    """
    if microbatches < 2 * ranks - 1:
        raise UserError(
            f"zb-v fills its warm-up with 2*ranks-1 = {2 * ranks - 1} microbatches, but "
            f"microbatches={microbatches}; choose microbatches >= {2 * ranks - 1} or "
            f"ranks <= {(microbatches + 1) // 2}"
        )

    def words(rank: int) -> list[Word]:
        after = ranks - rank
        entering = microbatches - 2 * ranks + 1 + rank
        return (
            [f(0)] * (2 * after - 1)
            + [f(1), f(0)] * rank
            + [f(1), b(1), w] * after
            + [f(0), b(0), w, f(1), b(1), w] * entering
            + [b(0), w, f(1), b(1), w] * (after - 1)
            + [b(0), b(1)] * rank
            + [b(0), w] * after
            + [w] * (2 * rank)
        )

    stages = 2 * ranks
    table = tuple(
        number(words(rank), [Chunk(0, rank), Chunk(1, stages - 1 - rank)]) for rank in range(ranks)
    )
    home = (*range(ranks), *reversed(range(ranks)))
    return Schedule("zb-v", ranks, stages, microbatches, (home,), table)
