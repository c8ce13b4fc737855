"""Gains of each part of V3's training schedule beside the others."""

from experiments.common.study import REDRAW, Claim, Part, Study

STUDY = Study(
    name="recipe",
    claim="a batch ramp, a warm-up, a decay in two phases and an average of the parameters each "
          "help at equal tokens",
    source="V3 report, sec. 4.2 and 3.2.3",
    parts=(
        Part(
            name="arms",
            command="python -m experiments.recipe.run",
            asks="held-out loss of the whole schedule and of it without one part, at equal tokens",
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
        Claim("ramp", "a batch that grows helps at equal tokens", "V3 sec. 4.2", "arms", "arms"),
        Claim("warmup", "a warm-up helps", "V3 sec. 4.2", "arms", "arms"),
        Claim("decay", "a decay of the rate helps", "V3 sec. 4.2", "arms", "arms"),
        Claim("phases", "two last phases at low rates help a cosine", "V3 sec. 4.2", "arms",
              "arms"),
        Claim("average", "an average of parameters tells the loss after the decay before it",
              "V3 sec. 3.2.3", "arms", "arms"),
    ),
)
