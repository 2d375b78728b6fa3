"""Metrics of edited images: how much they differ from their source, and how well they fit their prompt."""
