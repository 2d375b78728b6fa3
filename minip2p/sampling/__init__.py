"""Runs without edits: settings, guidance, the DDIM loop, and a run as a value that can be saved and opened."""
