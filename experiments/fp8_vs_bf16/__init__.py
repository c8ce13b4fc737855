"""Does FP8 training follow BF16 training, and what does each of its ingredients buy?"""

from experiments.common.study import REDRAW, Claim, Flag, Part, Study

PACKAGE = "python -m experiments.fp8_vs_bf16"
STUDY = Study(
    name="fp8_vs_bf16",
    claim="the loss of FP8 training stays within 0.25 % of bfloat16's, smoothed by 0.9; without "
          "promotion a sum over K = 4096 is wrong by nearly 2 %",
    source="V3 report, sec. 3.3 and 3.3.2",
    parts=(
        Part(
            name="training",
            command=f"{PACKAGE}.run",
            asks="loss curves of FP8, of FP8 without one ingredient, of float32 and of controls, "
                 "against bfloat16 from the same start on the same batches",
            cost="some hours on two cores",
            quick="two arms on two layers, 120 steps of 32 tokens, in a minute",
            verdict="narrowly against at tiny, by two steps of one seed; supports averaged over "
                    "seeds, and at small; with smaller batches and the higher rate: against",
            records=("training",),
            arms="*-seed*.json",
            flags=(Flag("--runs", "where unfinished arms keep their checkpoints "
                        "(runs/fp8_vs_bf16)"), REDRAW),
            is_tuned=True,
            is_resumable=True,
        ),
        Part(
            name="bytes",
            command=f"{PACKAGE}.bytes",
            asks="bytes of parameters, operands, activations and optimizer in each precision",
            cost="10 s on one core",
            quick="tiny alone, in 5 s",
            verdict="supports",
            records=("bytes",),
        ),
        Part(
            name="accumulation",
            command=f"{PACKAGE}.accumulation",
            asks="the error of long sums in 14-bit registers, by how often they are promoted",
            cost="1 minute on two cores",
            quick="two seeds instead of 16, sums up to K = 1024, in half a minute",
            verdict="supports",
            records=("accumulation",),
            flags=(REDRAW,),
        ),
        Part(
            name="products",
            command=f"{PACKAGE}.products",
            asks="memory, instructions and registers of V3's products, compiled for H200 and TPU7x",
            cost="some minutes on two cores, and the extras gpu-aot and tpu-aot",
            quick="the smallest product for those machines whose compiler is here, in a minute",
            verdict="supports",
            records=("products",),
        ),
    ),
    whole=("training",),
    claims=(
        Claim("training", "FP8 training stays within 0.25 % of bfloat16's loss",
              "V3 sec. 3.3", "training", "training", "inconclusive",
              "largest {training: small 2,048 FP8 / largest} at `small`, {training: "
              "tiny 2,048 FP8 / largest} at `tiny`, averaged over seeds {training: "
              "tiny 2,048 FP8 / largest, seeds averaged}"),
        Claim("bytes", "8-bit operands and caches take a quarter of float32's bytes",
              "V3 sec. 3.3.3", "bytes", "bytes", "supports",
              "MiB at `small`: weights {bytes: small weights / FP8}, caches {bytes: "
              "small cached / FP8}"),
        Claim("accumulation", "without promotion a sum over K = 4,096 is wrong by nearly 2 %",
              "V3 sec. 3.3.2", "accumulation", "accumulation", "supports",
              "{accumulation: never / normal: largest error}; promoted every 128 "
              "{accumulation: 128 / normal: largest error}"),
    ),
)
