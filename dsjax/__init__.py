"""The DeepSeek-V3 and R1 reports as a program in JAX: sections are files, equations are lines.

Rooms from the ground up; imports go down only (tests/test_architecture.py holds them to it):

    0  config, params               frozen dataclasses; Spec and tree words
       disk, errors, terminal       files as users have them, refusals, and how they are shown
    1  numerics, kernels             how numbers are held; Pallas twins of plain functions
    2  ops                           pure functions of arrays
    3  layers                        one section of the paper a file
    4  model                         blocks, stack, MTP, losses, counts
    5  parallel, plan                schedules and layouts over devices; what they will cost
    6  checkpoint, data, optim       trees to disk; text to batches; gradients to updates
    7  train, infer, evaluate        the loop; the sampler; what a model is worth
    8  rl, interop                   what is built on those three; the seam to Flax NNX
    9  cli                           the `dsjax` command, one subcommand a file
"""

__version__ = "0.1.0"
