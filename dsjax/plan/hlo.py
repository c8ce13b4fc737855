"""Read a compiled program: its collectives, and what is computed while they are under way.

`collectives(compiled.as_text())` lists every exchange between devices of a scheduled HLO program:
its kind, bytes, group of devices, how often a step runs it, and whether it is asynchronous. An
asynchronous one is a pair, `all-to-all-start` and `all-to-all-done`; the schedule is the order of
the text, so what stands between the two runs while the bytes travel. A pair with no matrix product
between start and done hides nothing.

Loops are counted: an instruction in the body of a scan over L layers runs L times a step. A loop
whose trips the program does not state depends on data; here that is only the rounds beyond the
first of the experts' exchange, which balance makes rare: `is_rare` marks what is inside, and it
counts as not run.

Written from the texts of the compilers for TPU (libtpu 0.0.42), GPU and CPU (jax 0.10 to 0.12).
Two of their ways to say things are easily misread. A pair on a GPU may still be synchronous: its
backend_config then has "is_sync":true. On a TPU a reduce-scatter may be a fusion that calls a
computation named all-reduce-scatter, and a collective that is asynchronous by a fusion is one whose
done is such a fusion.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

KINDS = ("all-gather", "reduce-scatter", "all-reduce", "ragged-all-to-all", "all-to-all",
         "collective-permute", "collective-broadcast", "send", "recv")
FREE = {"get-tuple-element", "tuple", "bitcast", "parameter", "constant", "after-all", "iota",
        "partition-id", "replica-id", "opt-barrier", "domain"}
PRODUCTS = {"dot", "convolution", "ragged-dot", "scaled-dot"}
PRODUCT_CALL = re.compile(
    r'custom_call_target="[^"]*(?:gemm|matmul|cublas|cudnn|__triton|tpu_custom_call|mosaic_gpu)')
MESH = re.compile(r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(.*?\))? *\{([^}]*)\}")
ATTENTION = re.compile(r"\battention\b")  # the scope in dsjax/model/block.py
ANY = re.compile("")
DATA_LOOP = 0  # trips of a loop that the program does not state


@dataclass(frozen=True)
class Collective:
    """One exchange between devices, as it stands in the program."""

    kind: str  # of KINDS
    name: str
    computation: str  # where it stands
    bytes: int  # of the larger of operands and results on one device
    group: int  # devices that take part together
    times: int  # runs of it in one run of the program
    is_rare: bool  # inside a loop whose trips depend on data
    is_async: bool  # other work may run between its start and its done
    products: int  # matrix products between start and done, those in stated loops as often as run
    attention: int  # of these, attention's
    others: int  # other instructions that do work there
    source: str  # op_name: the JAX function it comes from

    @property
    def is_hidden(self) -> bool:
        """True if matrix products run while it is under way."""
        return self.is_async and self.products > 0

    @property
    def is_beside_other(self) -> bool:
        """True if other work, but no product, runs while it is under way."""
        return self.is_async and not self.products and self.others > 0

    @property
    def sent(self) -> int:
        """Bytes a device sends at least, each time: what a ring or direct exchange puts out."""
        away = self.bytes * (self.group - 1) // self.group
        if self.kind == "all-reduce":
            return 2 * away
        return self.bytes if self.kind in ("collective-permute", "send", "recv") else away


@dataclass(frozen=True)
class Instruction:
    """One line of a computation."""

    name: str
    opcode: str
    type: str
    given: str  # what stands in the parentheses
    rest: str  # everything after them
    called: tuple[str, ...]  # computations

    @property
    def operands(self) -> list[str]:
        """Names of the instructions it reads."""
        return re.findall(r"%([\w.-]+)", self.given)


@dataclass
class Program:
    """Computations by name, each a list of instructions in the order they run."""

    computations: dict[str, list[Instruction]] = field(default_factory=dict)
    entry: str = ""
    devices: int = 1


def collectives(text: str) -> list[Collective]:
    """Every collective of a compiled program, from the text of `compiled.as_text()`."""
    program = parse(text)
    products, attention = _product_counts(program), _product_counts(program, ATTENTION)
    found = []
    for computation, (times, is_rare) in _runs(program).items():
        lines = program.computations[computation]
        types = {line.name: line.type for line in lines}
        for at, line in enumerate(lines):
            exchange = _exchange(program, line)
            if exchange is None:
                continue
            kind, described = exchange
            done = _done(lines, at)
            between = [] if done is None else lines[at + 1 : done]
            result = size((line if done is None else lines[done]).type)
            given = sum(size(types.get(o, "")) for o in line.operands)
            found.append(Collective(
                kind, line.name, computation,
                bytes=result if kind == "ragged-all-to-all" else max(given, result),
                group=group_size(described.rest) or program.devices, times=times, is_rare=is_rare,
                is_async=done is not None and '"is_sync":true' not in line.rest,
                products=sum(products[b.name] for b in between),
                attention=sum(attention[b.name] for b in between),
                others=sum(_is_work(b) and not products[b.name] for b in between),
                source=_source(line) or _source(described),
            ))
    return found


def summary(found: Sequence[Collective]) -> list[dict[str, object]]:
    """Collectives by kind and group, as rows of a table; bytes are of one device and one run.

    `count` is how many stand in the program outside rare loops, `asynchronous` how many of these
    are pairs, `hidden` how many have products between start and done, `attention` how many of these
    have attention's, `other` how many have other work alone; `rare` stand in rare loops.
    """
    rows = []
    for kind, group in sorted({(c.kind, c.group) for c in found}, key=lambda k: (k[0], k[1])):
        mine = [c for c in found if (c.kind, c.group) == (kind, group)]
        usual = [c for c in mine if not c.is_rare]
        rows.append({
            "kind": kind,
            "group": group,
            "count": len(usual),
            "runs": sum(c.times for c in usual),
            "bytes": sum(c.bytes * c.times for c in usual),
            "sent": sum(c.sent * c.times for c in usual),
            "asynchronous": sum(c.is_async for c in usual),
            "hidden": sum(c.is_hidden for c in usual),
            "hidden_bytes": sum(c.bytes * c.times for c in usual if c.is_hidden),
            "attention": sum(c.is_async and c.attention > 0 for c in usual),
            "attention_bytes": sum(c.bytes * c.times for c in usual
                                   if c.is_async and c.attention),
            "other": sum(c.is_beside_other for c in usual),
            "other_bytes": sum(c.bytes * c.times for c in usual if c.is_beside_other),
            "rare": len(mine) - len(usual),
        })
    return rows


# The text


def parse(text: str) -> Program:
    """Cut the text of a program into computations and instructions."""
    program, lines = Program(), None
    if found := re.search(r"^HloModule.*\bnum_partitions=(\d+)", text, re.MULTILINE):
        program.devices = int(found[1])
    for raw in text.splitlines():
        if raw.endswith("{") and not raw.startswith((" ", "HloModule")):
            name = raw.removeprefix("ENTRY ").split(" ", 1)[0].lstrip("%")
            if raw.startswith("ENTRY "):
                program.entry = name
            lines = program.computations.setdefault(name, [])
        elif raw.startswith("}"):
            lines = None
        elif lines is not None and " = " in raw:
            lines.append(_instruction(raw))
    if not program.entry:
        raise ValueError("the text has no ENTRY computation; give the text of a compiled program")
    return program


def _instruction(raw: str) -> Instruction:
    name, _, right = raw.strip().removeprefix("ROOT ").partition(" = ")
    end = _closing(right, 0) + 1 if right.startswith("(") else right.index(" ")
    opening = right.index("(", end)
    close = _closing(right, opening)
    rest = right[close + 1 :]
    called = re.findall(
        r"\b(?:calls|body|condition|to_apply|true_computation|false_computation)=%([\w.-]+)", rest)
    for branches in re.findall(r"\b(?:branch|called)_computations=\{([^}]*)\}", rest):
        called += re.findall(r"%([\w.-]+)", branches)
    return Instruction(name.lstrip("%"), right[end:opening].strip(), right[:end],
                       right[opening + 1 : close], rest, tuple(called))


def _closing(text: str, opening: int) -> int:
    """Return the index where the parenthesis that opens at `opening` closes."""
    depth = 0
    for mark in re.compile(r"[()]").finditer(text, opening):
        depth += 1 if mark[0] == "(" else -1
        if depth == 0:
            return mark.start()
    raise ValueError(f"a parenthesis is not closed in {text[opening : opening + 80]!r}")


def size(kind: str) -> int:
    """Bytes of a type as HLO writes it: bf16[2,8]{1,0}, or a tuple of such."""
    total = 0
    for dtype, dims in re.findall(r"\b([a-z]+\d*[a-z0-9]*)\[([\d,]*)\]", kind):
        bits = re.search(r"\d+", dtype)
        width = int(bits[0]) if bits else 8 * (dtype == "pred")
        count = math.prod(int(d) for d in dims.split(",") if d)
        total += (count * width + 7) // 8
    return total


def group_size(rest: str) -> int:
    """Devices of one replica group, in any of the ways they are written; 0 means all there are."""
    if found := re.search(r"replica_groups=\[(\d+),(\d+)\]", rest):
        return int(found[2])
    if found := re.search(MESH, rest):
        sizes = dict(re.findall(r"'([^']+)'=(\d+)", found[1]))
        axes = re.findall(r"'([^']+)'(?::\(\d+\)(\d+))?", found[2])
        return math.prod(int(part or sizes[axis]) for axis, part in axes)
    if found := re.search(r"replica_groups=\{\{([\d,]*)\}", rest):
        return len(found[1].split(","))
    return 2 if "source_target_pairs=" in rest else 0


# What runs


def _runs(program: Program) -> dict[str, tuple[int, bool]]:
    """Count a step's runs of each computation; True marks those only in loops that depend on data.

    What fusions and asynchronous pairs call belongs to them and is not listed.
    """
    found: dict[str, tuple[int, bool]] = {}

    def visit(name: str, times: int, is_rare: bool) -> None:
        before, was_rare = found.get(name, (0, True))
        found[name] = (before + times, was_rare and is_rare)
        for line in program.computations[name]:
            if line.opcode == "while":
                trips = trip_count(program, line)
                for other in line.called:
                    visit(other, times * trips, is_rare or trips == DATA_LOOP)
            elif line.opcode in ("call", "conditional"):
                for other in line.called:
                    visit(other, times, is_rare)

    visit(program.entry, 1, False)
    return found


def trip_count(program: Program, loop: Instruction) -> int:
    """Trips of a while loop; DATA_LOOP where they depend on data.

    Read from backend_config where the compiler left it, else from a condition that compares the
    counter with a constant: JAX's loops of known length count from 0 by 1.
    """
    if found := re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.rest):
        return int(found[1])
    condition = re.search(r"condition=%([\w.-]+)", loop.rest)
    lines = program.computations[condition[1]] if condition else []
    constants = {line.name: line.given for line in lines if line.opcode == "constant"}
    for operand in lines[-1].operands if lines else ():
        if constants.get(operand, "").isdigit():
            return int(constants[operand])
    return DATA_LOOP


def _product_counts(program: Program, of: re.Pattern = ANY) -> dict[str, int]:
    """Matrix products that each instruction runs, those of the computations it calls included.

    Only those whose JAX function has a name like `of`.
    A loop over data counts as not run, but once inside a stated loop: there it is no rare round
    but one over what precedes, such as attention's over the keys that a block of queries may see.
    """
    known: dict[tuple[str, bool], int] = {}

    def of_computation(name: str, is_looped: bool) -> int:
        if (name, is_looped) not in known:
            known[name, is_looped] = sum(
                of_line(line, is_looped) for line in program.computations[name])
        return known[name, is_looped]

    def of_line(line: Instruction, is_looped: bool) -> int:
        trips = 1
        if line.opcode == "while":
            trips = trip_count(program, line) or int(is_looped)
            is_looped = is_looped or trips > 0
        own = line.opcode in PRODUCTS or (
            line.opcode == "custom-call" and PRODUCT_CALL.search(line.rest) is not None)
        own = own and of.search(_source(line)) is not None
        return own + trips * sum(of_computation(c, is_looped) for c in line.called)

    return {line.name: of_line(line, False)
            for lines in program.computations.values() for line in lines}


# Collectives


def _exchange(program: Program, line: Instruction) -> tuple[str, Instruction] | None:
    """The kind of a collective that a line starts or is, and the line that says its groups."""
    kind = line.opcode.removesuffix("-start")
    if kind in KINDS:
        return kind, line
    if line.opcode not in ("async-start", "fusion"):
        return None
    for name in line.called:
        for inner in program.computations[name]:
            found = _exchange(program, inner)
            if found is not None:
                is_cut = found[0] == "all-reduce" and name.startswith("all-reduce-scatter")
                return "reduce-scatter" if is_cut else found[0], found[1]
    return None


def _done(lines: Sequence[Instruction], start: int) -> int | None:
    """Find the line where the exchange that begins at `start` is over; None if it is that one."""
    line = lines[start]
    if not line.opcode.endswith("-start") and line.opcode not in ("send", "recv"):
        return None
    alive = {line.name}
    for at in range(start + 1, len(lines)):
        if alive & set(lines[at].operands[:1]):
            if lines[at].opcode.endswith("-done"):
                return at
            if lines[at].opcode == "async-update":
                alive.add(lines[at].name)
    return None


def _is_work(line: Instruction) -> bool:
    return line.opcode not in FREE and not line.opcode.endswith(("-start", "-done"))


def _source(line: Instruction) -> str:
    found = re.search(r'op_name="([^"]*)"', line.rest)
    return found[1] if found else ""
