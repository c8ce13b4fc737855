"""Whether every number is the same on every layout of devices."""
