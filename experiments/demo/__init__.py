"""The demo's results, as a record."""

from experiments.common.study import Claim, Part, Study

STUDY = Study(
    name="demo",
    claim="the complete architecture, at a size for a laptop, learns real English better than "
          "counting does",
    source="none of the reports: it is the whole of them at once",
    parts=(Part(
        name="text",
        command="python -m experiments.demo.run",
        asks="held-out bits per byte of `dsjax demo` against a byte 5-gram's",
        cost="5 minutes on two cores",
        quick="20 steps instead of 600, in a minute",
        verdict="supports, at this size and for this corpus",
        records=("demo",),
        is_timed=True,
    ),),
    claims=(
        Claim("text", "the whole architecture learns at a laptop's size",
              "none of the reports", "text", "demo", "supports",
              "{demo: held-out bits / value} bits per byte, a 5-gram has {demo: byte "
              "5-gram / value}"),
    ),
)
