"""Contexts 32 times as long by YaRN: loss by position, needles, memory and time."""

from experiments.common.study import REDRAW, Claim, Flag, Part, Study

STUDY = Study(
    name="long_context",
    claim="two short phases of training with YaRN make a model use 32 times the context that it "
          "was trained on, and memory grows with a context's length, not with its square",
    source="DeepSeek-V3 report, sec. 4.3 and figure 8",
    parts=(Part(
        name="phases",
        command="python -m experiments.long_context.run phases",
        asks="loss by position of a small model trained on 128 tokens, with YaRN switched on, and "
             "after each of two phases",
        cost="half an hour on one core",
        quick="a few steps of each phase",
        verdict="supports: the loss beyond 128 tokens comes back to what it is within",
        records=("phases",),
        is_on_cpu=True,
        is_resumable=True,
        is_tuned=True,
    ), Part(
        name="needles",
        command="python -m experiments.long_context.run needles",
        asks="needles found by length and depth, by likelihood and by writing, before and after "
             "the phases, whose runs it reads",
        cost="five minutes on one core",
        quick="the phases' quick runs, and a coarse grid",
        verdict="supports; YaRN alone, untrained, finds them, too",
        records=("needles",),
        flags=(REDRAW,),
        is_on_cpu=True,
    ), Part(
        name="memory",
        command="python -m experiments.long_context.run memory",
        asks="largest memory of a process that attends over 8K, 16K and 32K tokens, forward and "
             "backward",
        cost="three minutes on one core",
        quick="1K and 2K tokens",
        verdict="supports",
        records=("memory",),
        is_on_cpu=True,
        is_timed=True,
    ), Part(
        name="prompt",
        command="python -m experiments.long_context.run prompt",
        asks="time to answer a prompt of 128K tokens at `tiny`, by dsjax generate and by the "
             "engine, and the bytes of its cache",
        cost="half an hour on two cores",
        quick="a prompt of 1K tokens",
        verdict="supports for the command; the engine was asked for a quarter of it",
        records=("prompt",),
        flags=(Flag("--way", "generate or engine; the record keeps what it has of the other"),
               Flag("--positions", "of the prompt and its answer", int, 131_072)),
        is_on_cpu=True,
        is_timed=True,
    ), Part(
        name="ahead",
        command="python -m experiments.long_context.run ahead",
        asks="memory of a device that reads 128K tokens at V3's size, compiled for H200 and v5p",
        cost="minutes a machine; needs the extras tpu-aot and gpu-aot",
        quick="`tiny`, for the machine whose compiler is installed",
        verdict="supports, by an estimate from programs of five and seven layers",
        records=("ahead",),
        flags=(Flag("--case", "machines to compile for; the record keeps what it has of others",
                    is_many=True),),
    )),
    claims=(
        Claim("phases", "two short phases with YaRN make 32 times the context usable",
              "V3 sec. 4.3", "phases", "phases", "supports",
              "nats from 2,048 to 4,096 tokens: {phases: 128 128 1,000 / 2,048 to "
              "4,096}, then {phases: after 4,096 / 2,048 to 4,096}"),
        Claim("needles", "what was said is found at every length",
              "V3 fig. 8", "needles", "needles", "supports",
              "{needles: after 4,096 likeliest / 4,096} of codes at 4,096 tokens"),
    ),
)
