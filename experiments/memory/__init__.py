"""Bytes that each of V3's savings of memory saves, and whether they come to 75 % together."""

from experiments.common.study import Claim, Part, Study

STUDY = Study(
    name="memory",
    claim="recomputation, bfloat16 moments, 8-bit operands and caches, shared embedding and head, "
          "an average on the host and more devices each save memory; 75 % less together",
    source="V3 report, sec. 3.2.3 and 3.3.3; 75 %: articles of January 2025",
    parts=(
        Part(
            name="steps",
            command="python -m experiments.memory.run",
            asks="bytes that a compiled training step asks for, with all savings, with one left "
                 "out, and with none",
            cost="10 CPU minutes, most of them compiling",
            quick="one step of two layers, in half a minute",
            verdict=None,
            records=("steps",),
            devices=4,
            is_on_cpu=True,
        ),
    ),
    claims=(
        Claim("each", "each of V3's savings saves memory", "V3 sec. 3.2.3 and 3.3.3", "steps",
              "steps"),
        Claim("quarter", "75 % less memory", "articles of January 2025", "steps", "steps"),
    ),
)
