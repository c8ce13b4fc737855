"""Does predicting a second token help the first, and how often would it be accepted?"""

from experiments.common.study import REDRAW, Claim, Part, Study

STUDY = Study(
    name="mtp",
    claim="predicting further tokens in training does not cost the main loss, and the second one "
          "is accepted in 85 to 90 % of cases",
    source="V3 report, sec. 2.2, 4.2, 4.5.1 and 5.4.3",
    parts=(
        Part(
            name="arms",
            command="python -m experiments.mtp.run",
            asks="main loss and acceptance without, with one and with two modules, and with a "
                 "constant weight of their loss",
            cost="20 CPU minutes",
            quick="one arm of three steps, in half a minute",
            verdict=None,
            records=("arms",),
            arms="arm-*.json",
            flags=(REDRAW,),
            is_resumable=True,
        ),
    ),
    claims=(
        Claim("main", "predicting a second token does not raise the main loss", "V3 Table 4",
              "arms", "arms"),
        Claim("weight", "the weight of its loss, 0.3 then 0.1, is no worse than 0.3 throughout",
              "V3 sec. 4.2", "arms", "arms"),
        Claim("accepted", "85 to 90 % of second tokens are accepted", "V3 sec. 5.4.3", "arms",
              "arms"),
    ),
)
