"""R1-Zero's observation at the size of a laptop, and the control that tells what it is."""

from experiments.common.study import REDRAW, Claim, Flag, Part, Study

STUDY = Study(
    name="r1",
    claim="reinforcement learning on the answer alone makes a base work its problems out before it "
          "answers: right answers and the length of outputs climb together",
    source="DeepSeek-R1 report, sec. 2.2 and figure 3",
    parts=(Part(
        name="zero",
        command="python -m experiments.r1.run zero",
        asks="`dsjax rl r1_zero_tiny` from nothing for three seeds: accuracy, length, pass@k of "
             "answers and of worked solutions, before and after",
        cost="half an hour on two cores",
        quick="a few steps of a smaller model, one seed",
        verdict="supports: at least .97 of samples are right, from at most .37, by three seeds; "
                "a habit of the base made sure, and none found",
        records=("zero", "passes"),
        arms="zero-seed*.json",
        flags=(REDRAW,),
        is_on_cpu=True,
        is_resumable=True,
    ), Part(
        name="control",
        command="python -m experiments.r1.run control",
        asks="the same from bases that were shown as many worked solutions, whose sums are "
             "wrong: does length climb where working does not pay?",
        cost="half an hour on two cores",
        quick="a few steps of a smaller model, one seed",
        verdict="supports: neither accuracy nor length climbs where working does not pay",
        records=("control",),
        arms="control-seed*.json",
        flags=(REDRAW,),
        is_on_cpu=True,
        is_resumable=True,
    ), Part(
        name="stages",
        command="python -m experiments.r1.run stages",
        asks="the report's four stages from the same bases: cold start, reasoning RL, rejection "
             "sampling and tuning, RL for all with a preference model; beside RL alone with as "
             "many outputs",
        cost="half an hour on two cores, bases included",
        quick="a few steps of a smaller model, one seed, nothing beside it",
        verdict="contradicts: the second tuning loses what cold start and RL had; these two alone "
                "are far above RL alone",
        records=("stages", "preference"),
        arms="stages-seed*.json",
        flags=(REDRAW,),
        is_on_cpu=True,
        is_resumable=True,
    ), Part(
        name="distil",
        command="python -m experiments.r1.run distil",
        asks="a dense and a mixture student of a tenth of the size: RL of their own, or tuning on "
             "the taught model's right outputs to as many questions; after `stages`",
        cost="half an hour on two cores",
        quick="a few steps of smaller students, one seed, taught by a base",
        verdict=None,
        records=("distil",),
        arms="distil-*-seed*.json",
        flags=(REDRAW,),
        is_on_cpu=True,
        is_resumable=True,
    ), Part(
        name="parity",
        command="python -m experiments.r1.run parity",
        asks="the same GRPO by trl of the exported base on the same questions: rewards and seconds "
             "of a step",
        cost="half an hour on two cores, and a Python with torch and trl",
        quick="two steps of a smaller model, one seed; trl's only where --peer-python is given",
        verdict=None,
        records=("trl",),
        arms="trl-seed*.json",
        flags=(REDRAW, Flag("--peer-python", "a Python with torch and trl; peer_trl.py says "
                            "which")),
        is_on_cpu=True,
        is_resumable=True,
    )),
    claims=(
        Claim("zero", "RL on answers alone makes a base work problems out",
              "R1 sec. 2.2, fig. 3", "zero", "zero", "supports",
              "right samples from at most {zero: most / base sampled} to at least "
              "{zero: least / RL sampled}, tokens from {zero: most / base length} to "
              "{zero: least / RL length}"),
        Claim("control", "outputs do not grow longer where working does not pay",
              "R1 sec. 2.2, fig. 3", "control", "control", "supports",
              "right samples {control: most / base sampled} before, {control: most / "
              "RL sampled} after"),
        Claim("stages", "supervised tuning and RL come further than RL alone",
              "R1 sec. 2.3", "stages", "stages", "contradicts",
              "right samples {stages: 1 0.338 / RL for all} after four stages, {stages: 1 0.338 / "
              "RL alone, 20 rollouts} by RL alone, second of three seeds"),
        Claim("distil", "a small model learns more from a taught one than by RL of its own",
              "R1 sec. 4.1", "distil", "distil"),
        Claim("parity", "its GRPO learns as trl's does, in half the time",
              "none of the reports", "parity", "trl"),
    ),
)
