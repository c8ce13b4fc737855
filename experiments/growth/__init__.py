"""Costs of one device as devices and experts grow in number."""

from experiments.common.study import Claim, Part, Study

STUDY = Study(
    name="growth",
    claim="with K routed experts a token, communication is bounded by the nodes and devices they "
          "are on, and experts are added at constant active parameters",
    source="V3 report, sec. 2.1.2 and 3.2.2; DeepSeekMoE, arXiv 2401.06066",
    parts=(Part(
        name="costs",
        command="python -m experiments.growth.run",
        asks="what a device exchanges and computes with 2 to 8 devices and 16 to 256 experts, "
             "compiled and counted",
        cost="some minutes on two cores",
        quick="2 devices, 16 and 32 experts, in half a minute",
        verdict="supports",
        records=("growth",),
    ),),
    claims=(
        Claim("bounded", "communication is bounded as experts are added",
              "V3 sec. 2.1.2 and 3.2.2", "costs", "growth", "supports",
              "copies a token on 8 devices: {growth: 8 16 / counted} of 16 experts, "
              "{growth: 8 256 / counted} of 256"),
    ),
)
