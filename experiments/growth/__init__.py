"""What a device exchanges and computes as devices and experts grow."""
