"""Pairs of a picture and its edit, with the instruction between them: data that trains editors by instructions."""
