"""One card: its ceilings, and what of them this project's kernels, step and decoding reach."""

from experiments.common.study import Claim, Part, Study

STUDY = Study(
    name="gpu",
    claim="on a Hopper GPU attention, products, the training step and decoding run near what the "
          "card gives, and their numbers are those of a CPU",
    source="DeepSeek-V3 report, sections 3.3 and 4.2, trained on H800",
    parts=(Part(
        name="card",
        command="python -m experiments.gpu.run",
        asks="ceilings, attention, experts, FP8, exactness, the step, decoding and the start",
        cost="ten minutes on one GPU",
        quick="the same checks at small sizes, as on a CPU, in a minute",
        verdict=None,
        records=("nvidia-h200",),
        arms="*.json",
    ),),
    claims=(Claim("card", "FP8 training, attention and decoding run near what a Hopper GPU gives",
                  "V3 sec. 3.3", "card", "nvidia-h200"),),
)
