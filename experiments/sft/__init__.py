"""Memory of tuning a 16B model: counted by part, and measured in proportion."""

from experiments.common.study import Claim, Part, Study

STUDY = Study(
    name="sft",
    claim="adapters beside weights that rest in 8 bits tune a 16B mixture on a card of 24 GB",
    source="LoRA, arXiv 2106.09685; ESFT, arXiv 2407.01906; V3 report, sec. 3.3.2 and 5.1",
    parts=(Part(
        name="memory",
        command="python -m experiments.sft.run memory",
        asks="bytes of one device by part, for models of 16B and several ways of tuning them",
        cost="seconds",
        quick="one model",
        verdict="supports, by count",
        records=("memory",),
        is_on_cpu=True,
    ), Part(
        name="cap",
        command="python -m experiments.sft.run cap",
        asks="largest memory of a process that tunes a deep, narrow mixture of random weights for "
             "some steps, beside the same share of memory as 24 GB are for 16B",
        cost="five minutes on two cores",
        quick="a few layers, two steps",
        verdict="supports, in proportion",
        records=("cap",),
        is_on_cpu=True,
    ),),
    claims=(
        Claim("card", "adapters beside 8-bit weights tune 16B on 24 GB",
              "arXiv 2106.09685; V3 sec. 3.3.2", "memory", "memory", "supports",
              "{memory: moonlight_16b_a3b adapters of rank 16, base in FP8 / in all, "
              "GB} GB by count"),
    ),
)
