"""The process around a command: streams, ctrl-C, devices, and the arguments it was given."""
