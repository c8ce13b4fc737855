"""Many devices: pipeline schedules as data, what they cost, and where experts live.

Reading order: schedules (table, flush, zero_bubble, dualpipe), schedule (by name; lockstep form),
validate (a proof that one is right), simulate (when everything runs), draw (its picture), balance
(EPLB: which experts to copy, and where).
"""
