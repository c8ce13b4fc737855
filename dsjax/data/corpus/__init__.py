"""The text that ships with dsjax: Shakespeare's works, one document a work (see ATTRIBUTION.md)."""
