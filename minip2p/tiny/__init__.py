"""The tiny world: a renderer with true masks, and the model trained on it."""
