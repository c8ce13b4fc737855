"""A run from its config to its pictures.

Reading order: state (what a run carries), step (one pure function from batch to metrics), corpus
(what is read), heldout (evaluation while training), metrics (written one step late), platform (what
was chosen for this machine), resume (where a run starts or goes on), display (what a person
watches), loop (all of it), plots.
"""
