"""Parts of `dsjax compile` and `dsjax plan`: prompts read by a machine, serving and headlines."""
