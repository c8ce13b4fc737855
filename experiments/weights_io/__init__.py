"""Memory and time of reading and writing checkpoints."""

from experiments.common.study import Claim, Flag, Part, Study

STUDY = Study(
    name="weights_io",
    claim="converting weights takes at most four times the largest tensor and a gigabyte of host "
          "memory, and a killed conversion goes on where it stopped",
    source="none of the reports: released checkpoints have up to 700 GB",
    parts=(Part(
        name="conversions",
        command="python -m experiments.weights_io.run",
        asks="peak memory and seconds of each conversion of a synthetic checkpoint of 3 GB, and of "
             "loading it onto eight devices",
        cost="3 minutes on two cores, and 20 GB of disk",
        quick="a checkpoint of 12 MB, each way once, in half a minute",
        verdict="supports, at this size",
        records=("memory",),
        flags=(Flag("--folder", "where some 20 GB fit, and what is measured stays, so that an "
                    "interrupted run goes on; default is a temporary one"),),
    ),),
    claims=(
        Claim("memory", "converting takes little more memory than its largest tensor",
              "none of the reports", "conversions", "memory", "supports",
              "{memory: hf-to-dsjax 0 / peak GB} GB, bound {memory: hf-to-dsjax 0 / "
              "bound GB}"),
    ),
)
