"""TODO: describe."""
