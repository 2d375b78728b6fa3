"""Prompt-to-Prompt: edits as pairs of matrices, and the runs that apply them. Start reading at `editing.py`."""
