"""V3's training step compiled for a pod: its memory, and the exchanges it hides."""

from experiments.common.study import Claim, Flag, Part, Study

STUDY = Study(
    name="pod",
    claim="V3 trains on 2,048 H800 of 80 GB, and its schedule hides the exchange of tokens behind "
          "computation",
    source="V3 report, sec. 3.1 and 3.2.1",
    parts=(Part(
        name="compiled",
        command="python -m experiments.pod.run",
        asks="memory and collectives of the whole step, compiled ahead for 2,048 v5p and H200",
        cost="about an hour on two cores, 11 GB of RAM, and the extras tpu-aot and gpu-aot",
        quick="tiny for one host of each kind, or of those whose compiler is here, in a minute",
        verdict="supports for memory, and for overlap in part",
        records=("pods", "collectives", "overlap"),
        flags=(Flag("case", "compile only these, and keep what the tables have of the others; as "
                    "in 'v5p bf16'", is_many=True),),
    ),),
    claims=(
        Claim("fits", "V3 trains on 2,048 devices of 80 GB",
              "V3 sec. 3.1", "compiled", "pods", "inconclusive",
              "{pods: h200 fp8 / together} GB compiled for an H200, which has {pods: "
              "h200 fp8 / a device has}"),
    ),
)
