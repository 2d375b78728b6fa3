"""A small CLIP of random weights."""

import torch
from prompts import TOKENIZER
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor


def write_clip(path):
    """Writes a folder with a small CLIP of random weights and the shipped tokenizer, and returns it."""
    small = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2)
    text = small | dict(vocab_size=len(TOKENIZER), eos_token_id=TOKENIZER.eos_token_id, bos_token_id=0, pad_token_id=1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        CLIPModel(
            CLIPConfig(text_config=text, vision_config=small | dict(image_size=32, patch_size=8), projection_dim=16)
        ).save_pretrained(path)
    images = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    CLIPProcessor(images, TOKENIZER).save_pretrained(path)
    return path
