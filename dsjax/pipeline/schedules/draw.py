"""Pictures of a pipeline schedule: a table of slots, a timeline in the terminal, a timeline as SVG.

Colors tell the kind of operation, lighter shades a later chunk (DualPipe: the second direction),
numbers the microbatch. An overlapped pair shows both of its halves, as in V3 Figure 5.
"""

from rich.text import Text

from dsjax.pipeline.schedules.build import Lockstep
from dsjax.pipeline.schedules.simulate import Timeline
from dsjax.pipeline.schedules.table import Cell, Kind, Op

COLORS = {
    Kind.FORWARD: (235, 164, 60),
    Kind.INPUT: (118, 196, 186),
    Kind.WEIGHT: (94, 136, 206),
    Kind.BACKWARD: (92, 168, 108),
}
MEANING = {
    Kind.FORWARD: "forward",
    Kind.INPUT: "input-gradient",
    Kind.WEIGHT: "weight-gradient",
    Kind.BACKWARD: "full backward",
}


def label(op: Op) -> str:
    """Name an operation by kind and microbatch, with a prime for every chunk after the first."""
    return f"{op.kind}{op.microbatch}" + "'" * op.chunk


def grid(steps: Lockstep, width: int) -> str:
    """Write `table[rank][slot]` in blocks of slots that fit into `width` columns."""
    rows = [[" ".join(map(label, cell)) or "." for cell in row] for row in steps.table]
    column = 1 + max(len(text) for row in rows for text in row)
    column = max(column, 1 + len(str(steps.slots - 1)))
    margin = len(f"rank {len(rows) - 1} ")
    fit = max(1, (width - margin) // column)
    blocks = []
    for first in range(0, steps.slots, fit):
        span = slice(first, first + fit)
        slots = [str(slot) for slot in range(steps.slots)[span]]
        lines = ["slot".ljust(margin) + "".join(text.ljust(column) for text in slots)]
        for rank, row in enumerate(rows):
            cells = "".join(text.ljust(column) for text in row[span])
            lines.append(f"rank {rank}".ljust(margin) + cells)
        blocks.append("\n".join(line.rstrip() for line in lines))
    return "\n\n".join(blocks)


def terminal(timeline: Timeline, width: int) -> Text:
    """Draw a timeline in `width` columns, one line a rank; letters are kept without color."""
    margin = len(f"rank {timeline.schedule.ranks - 1} ")
    columns = max(1, width - margin)
    scale = columns / float(timeline.makespan or 1)
    drawn = Text(no_wrap=True)
    for rank, (row, spans) in enumerate(zip(timeline.schedule.table, timeline.spans)):
        line = [(" ", "")] * columns
        for cell, (start, end) in zip(row, spans):
            first = min(int(start * scale), columns - 1)
            last = max(first + 1, min(int(end * scale), columns))
            line[first:last] = _blocks(cell, last - first)
        drawn.append(f"rank {rank}".ljust(margin))
        for letter, style in line:
            drawn.append(letter, style)
        drawn.append("\n")
    return drawn


def _blocks(cell: Cell, columns: int) -> list[tuple[str, str]]:
    """Fill columns with a cell's operations, side by side, as (letter, style)."""
    blocks: list[tuple[str, str]] = []
    for index, op in enumerate(cell):
        last = columns * (index + 1) // len(cell)
        space = last - len(blocks)
        style = "black on #{:02x}{:02x}{:02x}".format(*_shade(op))
        name = label(op)
        if len(name) > space:  # a part of it would name another operation
            name = name[:1]
        blocks += [(letter, style) for letter in name[:space].ljust(space)]
    return blocks


def _shade(op: Op) -> tuple[int, ...]:
    """Color of an operation: its kind's, halfway lighter with every chunk after the first."""
    strength = 0.5**op.chunk
    return tuple(round(255 - (255 - part) * strength) for part in COLORS[op.kind])


WIDTH = 830  # of a page that shows the picture as it is
ROW, MARGIN, TOP, FONT, GAP = 24, 48, 30, 10, 14
NARROWEST = 0.62  # of a digit, in font sizes
BANDS = 6  # of a picture, at most: with more it would fill a screen


def svg(timeline: Timeline) -> str:
    """Draw a timeline as the text of an SVG image as wide as a page.

    Time goes on in another band below where the numbers of one band would not fit its cells.
    """
    schedule = timeline.schedule
    scale, bands = _scale(timeline)
    shapes = []
    for rank, (row, spans) in enumerate(zip(schedule.table, timeline.spans)):
        shapes.append(
            f'<rect x="0" y="{ROW * rank + 1}" width="{float(timeline.makespan) * scale:.2f}" '
            f'height="{ROW - 2}" fill="#f3f3f3"/>'
        )
        for cell, (start, end) in zip(row, spans):
            box = (float(start) * scale, ROW * rank + 1, float(end - start) * scale)
            shapes += _boxes(cell, *box)
    title = (
        f"{schedule.name}: {schedule.ranks} ranks, {schedule.microbatches} microbatches, makespan "
        f"{float(timeline.makespan):g}, bubble {float(timeline.bubble):g}"
    )
    height = TOP + bands * (ROW * schedule.ranks + GAP) + 22
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
            f'width="{WIDTH}" height="{height}" font-family="sans-serif" font-size="{FONT}">',
            f"<title>{title}</title>",
            f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>',
            f'<text x="{MARGIN}" y="18" font-size="12">{title}</text>',
            *_bands(schedule.ranks, bands, shapes),
            *_legend(height - 20),
            "</svg>\n",
        ]
    )


def _scale(timeline: Timeline) -> tuple[float, int]:
    """Pixels of a unit of time, and bands: as few as let the narrowest cell hold its number."""
    spans = [end - start for row in timeline.spans for start, end in row if end > start]
    room, makespan = WIDTH - MARGIN - 8, float(timeline.makespan or 1)
    digits = len(str(timeline.schedule.microbatches - 1))
    wanted = 1.02 * NARROWEST * FONT * digits * makespan / float(min(spans, default=makespan))
    bands = min(max(1, -int(-wanted // room)), BANDS)
    return bands * room / makespan, bands


def _bands(ranks: int, bands: int, shapes: list[str]) -> list[str]:
    """The whole timeline, of which each band shows its part; a cell may go on in the next."""
    room, height = WIDTH - MARGIN - 8, ROW * ranks
    made = ['<defs>', '<g id="timeline">', *shapes, '</g>', '<clipPath id="band">',
            f'<rect width="{room}" height="{height}"/>', '</clipPath>', '</defs>']
    for band in range(bands):
        top = TOP + band * (height + GAP)
        made += [f'<text x="4" y="{top + ROW * (rank + 0.5) + 3:g}">rank {rank}</text>'
                 for rank in range(ranks)]
        made.append(f'<g transform="translate({MARGIN} {top})" clip-path="url(#band)">'
                    f'<use href="#timeline" x="{-band * room}"/></g>')
    return made


def _boxes(cell: Cell, left: float, top: float, width: float) -> list[str]:
    """Draw a cell, its operations one above the other, with their microbatches where they fit."""
    height = (ROW - 2) / len(cell)
    shapes = []
    for index, op in enumerate(cell):
        y = top + height * index
        color = ",".join(map(str, _shade(op)))
        shapes.append(
            f'<rect x="{left:.2f}" y="{y:g}" width="{width:.2f}" height="{height:g}" '
            f'fill="rgb({color})" stroke="#ffffff" stroke-width="0.6"/>'
        )
        text = str(op.microbatch)
        if width > NARROWEST * FONT * len(text):
            shapes.append(
                f'<text x="{_middle(left, width):.2f}" y="{y + height / 2 + 3:g}" '
                f'text-anchor="middle">{text}</text>'
            )
    return shapes


def _middle(left: float, width: float) -> float:
    """The middle of a cell, or of its larger part where it goes on in the next band."""
    room = WIDTH - MARGIN - 8
    edge = (left + width) // room * room
    if not left < edge < left + width:
        return left + width / 2
    before, after = (left + edge) / 2, (edge + left + width) / 2
    return before if edge - left >= width / 2 else after


def _legend(y: float) -> list[str]:
    """Explain the colors."""
    shapes = []
    for index, (kind, meaning) in enumerate(MEANING.items()):
        x = MARGIN + 130 * index
        color = ",".join(map(str, COLORS[kind]))
        shapes.append(f'<rect x="{x}" y="{y}" width="12" height="12" fill="rgb({color})"/>')
        shapes.append(f'<text x="{x + 17}" y="{y + 9}">{meaning} ({kind})</text>')
    x = MARGIN + 130 * len(MEANING)
    shapes.append(f'<text x="{x}" y="{y + 9}">lighter: later chunk or other direction</text>')
    return shapes
