"""Speed of a training step on a CPU, beside a peer and in each precision."""

from experiments.common.study import Claim, Flag, Part, Study

STUDY = Study(
    name="speed",
    claim="the reimplementation trains on a CPU at least as fast as what people use, and FP8 costs "
          "a CPU without it at most 1.35 of bfloat16",
    source="none of the reports: their machines are others",
    parts=(
        Part(
            name="training",
            command="python -m experiments.speed.run",
            asks="tokens a second beside transformers on torch, process by process in turn",
            cost="some ten minutes on two cores, and a Python with torch and transformers",
            quick="one round of 3 steps of tiny, without the peer unless --peer-python is given, "
                  "in a minute",
            verdict="no goal is met where both libraries multiply equally fast: 1.1 times the "
                    "peer in float32, .6 with bfloat16 operands without instructions for them",
            records=("training", "training_earlier"),
            flags=(
                Flag("--peer-python", "a Python with torch and transformers; peer_transformers.py "
                     "says which"),
                Flag("--rounds", "rounds of all processes (3)", int, 3),
                Flag("--steps", "timed steps of a process (12)", int, 12),
                Flag("--shapes", "of tiny and small (both)", str, ("tiny", "small"), is_many=True),
            ),
        ),
        Part(
            name="inference",
            command="python -m experiments.speed.inference",
            asks="tokens a second of decoding and prefill beside transformers with a static cache, "
                 "and of the engine beside bare decoding, process by process in turn",
            cost="some fifteen minutes on two cores, and a Python with torch and transformers",
            quick="one round of 4 steps, without the peer unless --peer-python is given, in two "
                  "minutes",
            verdict="contradicted: decoding is 1.75 and 2.8 times the peer, prefill 0.9, and the "
                    "engine keeps 0.58",
            records=("inference",),
            flags=(
                Flag("--peer-python", "a Python with torch and transformers; peer_transformers.py "
                     "says which"),
                Flag("--rounds", "rounds of all processes (5)", int, 5),
                Flag("--steps", "tokens of a repetition (64)", int, 64),
            ),
        ),
        Part(
            name="fp8",
            command="python -m experiments.speed.fp8",
            asks="steps in FP8, bfloat16 and float32, process by process in turn",
            cost="some minutes on two cores",
            quick="one round of 3 steps of tiny, in two minutes",
            verdict="supported at both shapes in every round",
            records=("fp8",),
            flags=(
                Flag("--rounds", "rounds of all processes (3)", int, 3),
                Flag("--steps", "timed steps of a process (20)", int, 20),
            ),
        ),
    ),
    whole=("training",),
    claims=(
        Claim("training", "it trains as fast as what people use, on a CPU",
              "none of the reports", "training", "training", "inconclusive",
              "{training: tiny float32 / ratio} times transformers at `tiny` in float32, "
              "{training: tiny bfloat16 / ratio} with bfloat16 operands on a processor without "
              "instructions for them"),
        Claim("decoding", "it decodes 16 rows three times as fast as what people use",
              "none of the reports", "inference", "inference", "contradicts",
              "{inference: decode 16 / ratio} times"),
    ),
)
