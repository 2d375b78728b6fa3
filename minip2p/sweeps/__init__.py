"""Sweeps: every edit of a grid of settings, with a table, contact sheets and charts."""
