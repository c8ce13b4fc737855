"""Do short rows first save time, and what do they cost late in a long row?"""

from experiments.common.study import REDRAW, Claim, Part, Study

STUDY = Study(
    name="curriculum",
    claim="training on short rows first costs no loss at equal tokens, late positions included, "
          "and less time",
    source="V3 report, sec. 4.3, which trains at 4K and extends to 32K and 128K at the end",
    parts=(
        Part(
            name="arms",
            command="python -m experiments.curriculum.run",
            asks="loss by position and CPU seconds of rows of 512 throughout, of 64, 128, 256 then "
                 "512, and of 128 throughout",
            cost="15 CPU minutes",
            quick="one arm of three steps, in half a minute",
            verdict=None,
            records=("arms",),
            arms="arm-*.json",
            flags=(REDRAW,),
            is_resumable=True,
        ),
    ),
    claims=(
        Claim("loss", "short rows first cost no loss at equal tokens", "V3 sec. 4.3", "arms",
              "arms"),
        Claim("late", "short rows first cost nothing late in a long row", "V3 sec. 4.3",
              "arms", "arms"),
        Claim("time", "short rows first take less time", "V3 sec. 4.3", "arms", "arms"),
    ),
)
