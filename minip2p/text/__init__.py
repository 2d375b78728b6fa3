"""Prompts: their words and tokens, and the embeddings that the UNet reads."""
