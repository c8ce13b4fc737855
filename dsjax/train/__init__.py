"""A run: state, step and loop.

Reading order: state (what a run carries), step (one pure function from batch to metrics), pipelined
(the gradients of a step under a pipeline), sharding (a run over devices), corpus and tokenizer
(what is read), folder (how a run begins, goes on and is held), heartbeat (processes that watch each
other), signals, step_report (what a step tells), tasks (public tasks on the way), loop (all of it).
"""
