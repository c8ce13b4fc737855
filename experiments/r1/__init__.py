"""R1-Zero's observation at the size of a laptop, and the control that tells what it is."""

from experiments.common.study import REDRAW, Claim, Part, Study

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
    ),
)
