"""One file a run or a released model; each has one `config()` and a docstring that is its page."""
