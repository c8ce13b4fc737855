"""Checkpoints: whole or not there, checked byte by byte when read, on any mesh.

Reading order: `boxes` and `reader` (the one form in which weights are read, whatever their source),
`sink` (weights onto devices), `manifest` (what a checkpoint holds, how damage is told), `files`
(what a finished folder is, how it comes and goes), `multihost` (which one is read, by all processes
and beside a writer), `arrays` and `plain` (arrays on disk, in folders of any name), `store` (saving
while training goes on, restoring), `run_weights` (a run's parameters alone). `orbax_quiet` keeps
orbax from the terminal.
"""
