"""Does a moving bias balance experts as well as a balance loss, at no cost in held-out loss?"""

from experiments.common.study import REDRAW, Claim, Part, Study

STUDY = Study(
    name="balance",
    claim="a bias moved by the sign of the load balances experts without an auxiliary loss, at a "
          "held-out loss no higher than with one",
    source="V3 report, sec. 2.1.2, 4.5.2 and 4.5.3; arXiv 2408.15664",
    parts=(
        Part(
            name="methods",
            command="python -m experiments.balance.run",
            asks="load, dead experts and held-out loss without balancing, with V2's loss, with a "
                 "batch-wise loss and with the bias at three speeds; and who reads which text",
            cost="20 CPU minutes",
            quick="one arm of three steps, in half a minute",
            verdict=None,
            records=("methods",),
            arms="arm-*.json",
            flags=(REDRAW,),
            is_resumable=True,
        ),
    ),
    claims=(
        Claim("balance", "without balancing, routing collapses; the bias keeps it even",
              "V3 sec. 2.1.2", "methods", "methods"),
        Claim("loss", "the bias costs no held-out loss against an auxiliary loss",
              "V3 Table 5", "methods", "methods"),
        Claim("batch", "a batch-wise loss does as well as the bias", "V3 sec. 4.5.3",
              "methods", "methods"),
        Claim("special", "without a sequence-wise loss experts specialize more",
              "V3 sec. 4.5.3, fig. 9", "methods", "methods"),
    ),
)
