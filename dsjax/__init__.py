"""The DeepSeek-V3 and R1 reports as a program in JAX: sections are files, equations are lines.

Rooms from the ground up; imports go down only (tests/test_architecture.py holds them to it):

    0   config, params               frozen dataclasses; Spec and tree words
        disk, errors, terminal       files as users have them, refusals, and how they are shown
    1   numerics, kernels            number formats and products; Pallas forms of plain functions
    2   ops                          pure functions of arrays
    3   layers                       one section of the paper a file
    4   model                        blocks, stack, MTP, losses, counts
    5   parallel, data, optim        layouts over devices; text to batches; gradients to updates
    6   runtime, pipeline            what depends on the machine; schedules and their executor
        checkpoint, released         trees to disk; released checkpoints in and out
    7   infer, report, weights       the sampler; metrics, display and plots; one way in for weights
    8   evaluate, serve              scores on text that was held out; the engine's HTTP door
    9   train                        state, step, loop, resume; fine-tuning of all or a part
    10  rl, plan, interop            GRPO from rules; needs of a run, by compiling it; Flax NNX
    11  cli                          the `dsjax` command, one subcommand a file
"""

__version__ = "0.1.0"
