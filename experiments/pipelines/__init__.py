"""Pipeline schedules: what the report claims, what one executor does."""

from experiments.common.study import REDRAW, Claim, Part, Study

RUN = "python -m experiments.pipelines.run"
STUDY = Study(
    name="pipelines",
    claim="DualPipe's bubble is (PP/2-1)(F&B+B-3W) at twice the parameters and PP+1 activations, "
          "and its overlapped chunks hide communication",
    source="V3 report, sec. 3.2.1, Table 2",
    parts=(
        Part(
            name="schedules",
            command=f"{RUN} schedules",
            asks="bubble and activations of seven schedules, simulated, against the closed forms",
            cost="15 s on one core",
            quick="the same, in 15 s",
            verdict="supports, in simulation",
            is_on_cpu=True,
            records=("schedules", "v3_step", "lengths"),
            flags=(REDRAW,),
        ),
        Part(
            name="executed",
            command=f"{RUN} executed",
            asks="slots, work, memory and form of each schedule as executed on four devices",
            cost="some minutes on two cores",
            quick="1F1B alone, in a minute",
            verdict="supports, by count of what was executed",
            is_on_cpu=True,
            records=("memory", "work", "forms"),
            devices=4,
            is_tuned=True,
            is_timed=True,
        ),
        Part(
            name="overhead",
            command=f"{RUN} overhead",
            asks="a pipeline of one rank beside the plain step",
            cost="2 minutes on two cores",
            quick="two rounds without rematerialization, in a minute",
            verdict="supports: less than 5 % in the median",
            is_on_cpu=True,
            records=("overhead",),
            devices=1,
            is_tuned=True,
            is_timed=True,
        ),
        Part(
            name="curves",
            command=f"{RUN} curves",
            asks="60 steps of tiny under DualPipe on four devices against one device",
            cost="some minutes on two cores",
            quick="4 steps of the calm recipe on two layers and two devices, in two minutes",
            verdict="supports while no undecided choice of experts turns",
            is_on_cpu=True,
            records=("curves",),
            flags=(REDRAW,),
        ),
        Part(
            name="ahead",
            command=f"{RUN} ahead",
            asks="what compilers for v5p and H200 hide of each schedule's exchanges",
            cost="about an hour on two cores, and the extras tpu-aot and gpu-aot",
            quick="1F1B for those machines whose compiler is here, in a minute",
            verdict="read from schedules of compilers, not run",
            is_on_cpu=True,
            records=("ahead", "pairs"),
        ),
    ),
    claims=(
        Claim("bubble", "DualPipe's bubble and activations are Table 2's",
              "V3 sec. 3.2.1, Table 2", "schedules", "schedules", "supports",
              "bubble {schedules: dualpipe 8 / simulated}, formula {schedules: "
              "dualpipe 8 / its value}; activations {schedules: dualpipe 8 / "
              "activations (formula)}"),
        Claim("curve", "a pipeline trains as one device does",
              "V3 sec. 3.2.1, taken for granted", "curves", "curves", "supports",
              "losses apart by {curves: calm DualPipe / in 60} in 60 steps"),
    ),
)
