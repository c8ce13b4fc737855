"""Is a mixture better than a dense model of equal active FLOPs, and a finer one better still?"""

from experiments.common.study import REDRAW, Claim, Part, Study

STUDY = Study(
    name="moe",
    claim="at equal active FLOPs a mixture learns more than a dense model, fine experts more than "
          "coarse ones, and a shared expert helps",
    source="DeepSeekMoE, arXiv 2401.06066, sec. 3 and 4; V3 report, sec. 2.1.2",
    parts=(
        Part(
            name="arms",
            command="python -m experiments.moe.run",
            asks="held-out loss of dense, coarse, fine and finest feed-forwards of equal active "
                 "FLOPs, and of one without a shared expert",
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
        Claim("dense", "a mixture has a lower loss than a dense model of equal active FLOPs",
              "arXiv 2401.06066, sec. 4.2", "arms", "arms"),
        Claim("fine", "many small experts are better than few large ones",
              "arXiv 2401.06066, sec. 3.1", "arms", "arms"),
        Claim("shared", "a shared expert helps", "arXiv 2401.06066, sec. 3.2", "arms", "arms"),
    ),
)
