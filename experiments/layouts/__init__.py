"""Every number of a step on every layout, compared with one device's."""

from experiments.common.study import Claim, Part, Study

STUDY = Study(
    name="layouts",
    claim="loss, gradients, router biases and metrics of a step are the same whatever the devices",
    source="V3 report, sec. 3.2 and 2.1.2, which take it for granted",
    parts=(Part(
        name="steps",
        command="python -m experiments.layouts.run",
        asks="the largest difference from one device on every layout of eight, and bytes that "
             "cross links",
        cost="some ten minutes on two cores",
        quick="one layout of two devices, in a minute",
        verdict="supports",
        records=("layouts", "links"),
    ),),
    claims=(
        Claim("same", "a step's numbers do not depend on the devices",
              "V3 sec. 3.2, taken for granted", "steps", "layouts", "supports",
              "gradients within {layouts: * / gradients}"),
    ),
)
