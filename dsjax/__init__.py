"""The DeepSeek-V3 and R1 reports as a program in JAX: sections are files, equations are lines.

Rooms from the ground up; imports go down only (tests/test_architecture.py holds them to it):

    0  config, params               frozen dataclasses; Spec and tree words
       disk, errors, terminal       files as users have them, refusals, and how they are shown
    1  numerics, kernels             how numbers are held; Pallas twins of plain functions
    2  ops                           pure functions of arrays
    3  layers                        one section of the paper a file
    4  model                         blocks, stack, MTP, losses, counts
    5  parallel, data, optim        layouts over devices; text to batches; gradients to updates
    6  runtime, pipeline            where a run meets a machine; schedules and what runs them
       checkpoint, released         trees to disk; released checkpoints in and out
    7  infer, report                the sampler; metrics, display and plots
    8  evaluate                     what a model is worth
    9  train                        state, step, loop, resume
    10 plan, interop                what a run will cost; the seam to Flax NNX
    11 cli                          the `dsjax` command, one subcommand a file
"""

__version__ = "0.1.0"
