"""How fast a training step is, beside a fast peer on the same machine."""
