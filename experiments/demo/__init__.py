"""What the demo reaches, as a record."""
