"""Many devices: a mesh, who holds what, and how tokens find their experts; pipelines as data.

Reading order: mesh (named axes), rules (logical axes to mesh axes), exchange (rows to other devices
and back), expert (dropless dispatch in rounds and hops), place (the layers' functions on a mesh),
traffic (bytes on each kind of link), launch (several processes);
schedules (table, flush, zero_bubble, dualpipe), schedule (by name; lockstep form), validate (a
proof that one is right), simulate (when everything runs), draw (its picture), program (a table as
instructions), split (a gradient in three parts), stages (layers on ranks), slots (one slot's work),
pipeline (runs any table), balance (EPLB: which experts to copy, and where).
"""
