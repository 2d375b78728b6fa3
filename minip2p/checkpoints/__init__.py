"""Checkpoints: reads models from files and from the Hugging Face hub, merges LoRAs into them, and saves them."""
