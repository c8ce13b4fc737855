"""Pipeline parallelism: schedules as data, and one scan that runs any of them.

Reading order: schedules (tables of operations, proved, simulated and drawn), instructions (a table
as integers that every rank follows), split_vjp (a gradient in three parts), stage_work (layers on
ranks), buffers (the fixed memory of a rank), transfer (values between ranks), ticks (one slot's
work), executor (runs any table).
"""
