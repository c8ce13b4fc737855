"""Tables of `dsjax show`: bytes of training and serving, loads of experts."""
