"""DualPipe (V3 section 3.2.1, Figure 5) and DualPipeV, as the eight steps of the reference.

DualPipe feeds the pipeline from both ends. Rank r of P holds stage r for the direction that
enters at rank 0 and stage P-1-r for the other, so a forward of one direction always has a
backward of the other to overlap with, and the all-to-alls of each hide behind the compute of the
other. DualPipeV folds that picture: P/2 ranks, each holding stages r and P-1-r of one pipeline.

Both are the same eight steps. `depth` is the number of ranks from an end to the middle, P/2,
`near` how far a rank is from its end, phase 0 the stages met on the way to the middle and phase 1
those on the way out; for the far half of DualPipe's ranks the directions swap phases.
"""

from dsjax.errors import UserError
from dsjax.pipeline.schedules.table import Chunk, Row, Schedule, Word, b, bw, f, number, w


def step_counts(depth: int, near: int, microbatches: int) -> tuple[int, ...]:
    """Repetitions of the eight steps on a rank, with `microbatches` in each phase."""
    out, back = depth - near - 1, near + 1
    return (2 * out, back, out, microbatches - 2 * depth + back, out, back, out, back)


def eight_steps(depth: int, near: int, microbatches: int) -> list[Word]:
    """Spell a rank's program; `microbatches` in each phase, at least 2 * depth.

    The middle ranks run their first pair apart: others wait for its forward, and a shorter wait
    there shortens the bubble. The later half of step 6 leaves its weight-gradients to 7 and 8.
    """
    n1, n2, n3, n4, n5, n6, n7, n8 = step_counts(depth, near, microbatches)
    main = [f(0) + bw(1), f(1) + bw(0)] * n4
    if near == depth - 1:
        main[:1] = [f(0), bw(1)]
    whole, split = [bw(1), bw(0)] * n6, [b(1), b(0)] * n6
    turn = n6 // 2 * 2 + (near + 1) % 2
    return (
        [f(0)] * n1
        + [f(0), f(1)] * n2
        + [b(1), w, f(1)] * n3
        + main
        + [bw(1), f(1) + bw(0)] * n5
        + whole[:turn]
        + split[turn:]
        + [w, b(0)] * n7
        + [w] * n8
    )


def dualpipe(ranks: int, microbatches: int) -> Schedule:
    """Feed both ends of P ranks: bubble (P/2-1)(F&B+BW-3W), 2 stages a rank, P+1 activations.

    The first half of the microbatches enters at rank 0, the second half at rank P-1.
    """
    if ranks % 2:
        found = [n for n in (ranks - 1, ranks + 1) if n and microbatches >= 2 * n]
        values = " or ".join(map(str, found or [2]))
        raise UserError(
            f"dualpipe pairs ranks from both ends, but ranks={ranks} is odd; choose ranks {values}"
        )
    _enough("dualpipe", ranks, microbatches)
    if microbatches % 2:
        raise UserError(
            f"dualpipe feeds half of the microbatches from each end, but microbatches="
            f"{microbatches} is odd; choose {microbatches - 1} or {microbatches + 1}"
        )
    half, each = ranks // 2, microbatches // 2

    def row(rank: int) -> Row:
        near = min(rank, ranks - 1 - rank)
        phases = [Chunk(0, rank, 0, 0), Chunk(1, ranks - 1 - rank, 1, each)]
        return number(eight_steps(half, near, each), phases if rank < half else phases[::-1])

    table = tuple(map(row, range(ranks)))
    steps = tuple(step_counts(half, min(r, ranks - 1 - r), each) for r in range(ranks))
    home = (tuple(range(ranks)), tuple(reversed(range(ranks))))
    return Schedule("dualpipe", ranks, ranks, microbatches, home, table, steps)


def dualpipe_v(ranks: int, microbatches: int) -> Schedule:
    """Fold DualPipe of P stages onto P/2 ranks: the same bubble and live activations."""
    _enough("dualpipe-v", ranks, microbatches)
    stages = 2 * ranks

    def row(rank: int) -> Row:
        phases = [Chunk(0, rank), Chunk(1, stages - 1 - rank)]
        return number(eight_steps(ranks, rank, microbatches), phases)

    table = tuple(map(row, range(ranks)))
    steps = tuple(step_counts(ranks, rank, microbatches) for rank in range(ranks))
    home = (*range(ranks), *reversed(range(ranks)))
    return Schedule("dualpipe-v", ranks, stages, microbatches, (home,), table, steps)


def _enough(name: str, ranks: int, microbatches: int) -> None:
    """Refuse a batch that does not fill the pipeline."""
    if microbatches < 2 * ranks:
        raise UserError(
            f"{name} needs 2*ranks = {2 * ranks} microbatches or more, but microbatches="
            f"{microbatches}; choose microbatches >= {2 * ranks} or fewer ranks"
        )
