"""The tiny world: a renderer with true masks, the model that is trained on it, and the judge that measures edits."""
