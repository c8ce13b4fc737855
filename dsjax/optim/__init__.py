"""From gradients to parameters, as V3 does it (report sec. 4.2).

Reading order: adamw (clip, decay mask, bfloat16 moments), schedule (schedules at a step), ema (the
parameters' average, kept on the host).
"""
