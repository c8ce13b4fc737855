"""What converting released checkpoints takes of memory and time."""
