"""Savings of each idea on the way to one loss, and in serving."""

from experiments.common.study import REDRAW, Claim, Part, Study

STUDY = Study(
    name="ladder",
    claim="a mixture, latent attention, further tokens and FP8 together make training to one loss "
          "and serving cheaper",
    source="V3 report as a whole; articles of January 2025: 45 times as efficient",
    parts=(
        Part(
            name="arms",
            command="python -m experiments.ladder.run",
            asks="tokens, FLOPs, bytes and CPU time to the loss of a dense float32 model, and the "
                 "bytes and FLOPs of a served token, one idea more at a time",
            cost="25 CPU minutes",
            quick="one arm of three steps, in half a minute",
            verdict=None,
            records=("arms",),
            arms="arm-*.json",
            flags=(REDRAW,),
            is_resumable=True,
        ),
    ),
    claims=(
        Claim("training", "all ideas together reach the dense model's loss with less work",
              "V3 report as a whole", "arms", "arms"),
        Claim("serving", "with all ideas a served token reads fewer bytes",
              "V3 report as a whole", "arms", "arms"),
        Claim("times", "45 times as efficient", "articles of January 2025", "arms", "arms"),
    ),
)
