"""Writes a model as an official Stable Diffusion folder: what diffusers' StableDiffusionPipeline opens, and we."""

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from minip2p.checkpoints.save import DiffusersWriter
from minip2p.config import SchedulerConfig
from minip2p.io.files import shipped_weights, write_json
from minip2p.unet import UNet
from minip2p.vae import VAE

TOKENIZER = shipped_weights("tiny") / "tokenizer"


GUIDANCE = 4.0  # what the model card recommends


def load_tokenizer() -> Any:
    """The tiny model's tokenizer: CLIP's own class on a cut vocabulary."""
    from transformers import CLIPTokenizer

    return CLIPTokenizer.from_pretrained(TOKENIZER, local_files_only=True)


def make_text_encoder(width: int) -> Any:
    """A small CLIP text encoder with random weights: 3 layers, 4 heads."""
    from transformers import CLIPTextConfig, CLIPTextModel

    words = load_tokenizer()
    encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(words),
            hidden_size=width,
            intermediate_size=4 * width,
            projection_dim=width,
            num_hidden_layers=3,
            num_attention_heads=4,
            max_position_embeddings=words.model_max_length,
            bos_token_id=words.bos_token_id,
            eos_token_id=words.eos_token_id,
            pad_token_id=words.pad_token_id,
        )
    )
    encoder.set_attn_implementation("eager")  # the fused kernel's backward is slow on a CPU at these sizes
    return encoder


def export_model(
    folder: Path,
    vae: VAE,
    unet: UNet,
    text: Any,
    sched: SchedulerConfig,
    *,
    scaling_factor: float,
    trained: dict[str, int],
) -> None:
    """Writes the folder, float16. The tokenizer is copied; the configs say float32, so that they open as such.

    trained: how many steps each part has been trained, for a warm start. It is taken away first and written last, so
    that a folder that was left half-written is no start for anything.
    """
    half = copy.deepcopy(vae).half()
    half.config = replace(vae.config, scaling_factor=scaling_factor)
    own, encoders = {"guidance": GUIDANCE, "_trained": trained}, {"text_encoder": copy.deepcopy(text).half()}
    DiffusersWriter(copy.deepcopy(unet).half(), half, encoders, {"tokenizer": TOKENIZER}, sched, own).write(folder)
    config = folder / "text_encoder/config.json"
    write_json(config, json.loads(config.read_text()) | {"dtype": "float32", "torch_dtype": "float32"})
