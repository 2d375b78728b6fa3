"""Writes the tiny model as a folder of the official Stable Diffusion layout, which minip2p and diffusers both open."""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

from minip2p.checkpoints.save import DiffusersWriter
from minip2p.config import SchedulerConfig
from minip2p.io.files import read_json, shipped_weights, write_json
from minip2p.unet import UNet
from minip2p.vae import VAE
from minip2p.validation import is_integer

TOKENIZER = shipped_weights("tiny") / "tokenizer"
GUIDANCE_SCALE = 4.0  # the default that the model card recommends


def load_tokenizer() -> Any:
    """The tiny model's tokenizer: transformers' CLIPTokenizer with a reduced vocabulary."""
    from transformers import CLIPTokenizer

    return CLIPTokenizer.from_pretrained(TOKENIZER, local_files_only=True)


def make_text_encoder(width: int) -> Any:
    """A small CLIP text encoder with random weights: 3 layers, 4 heads."""
    from transformers import CLIPTextConfig, CLIPTextModel

    tokenizer = load_tokenizer()
    encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=4 * width,
            projection_dim=width,
            num_hidden_layers=3,
            num_attention_heads=4,
            max_position_embeddings=tokenizer.model_max_length,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    encoder.set_attn_implementation("eager")  # the fused kernel's backward pass is slow on a CPU at these sizes
    return encoder


def export_model(
    folder: Path,
    vae: VAE,
    unet: UNet,
    text: Any,
    scheduler: SchedulerConfig,
    *,
    scaling_factor: float,
    trained: dict[str, int],
    words: list[str],
    guidance: float = GUIDANCE_SCALE,
    parts_from: Path | None = None,
) -> None:
    """Writes the folder. The weights are float16; the text encoder's config says float32, so that it opens as float32.

    trained: the number of steps that each part has been trained ("vae", "unet"), for a warm start. The file that holds
    it is deleted first and written last, so that a folder left half-written cannot serve for a warm start. words: those
    that the model knows. guidance: its default guidance scale. parts_from: the folder of a model with this VAE and text
    encoder; if it is beside `folder`, only the UNet and the scheduler are written; the other parts are that model's.
    """
    half_vae = copy.deepcopy(vae).half()
    half_vae.config = replace(vae.config, scaling_factor=scaling_factor)
    encoders = {"text_encoder": copy.deepcopy(text).half()}
    defaults = {"guidance": guidance, "words": words, "_trained": trained}
    target, other = folder.resolve(), folder.resolve() if parts_from is None else parts_from.resolve()
    is_complete = other == target or other.parent != target.parent
    if not is_complete:
        defaults["parts_from"] = other.name
    DiffusersWriter(
        copy.deepcopy(unet).half(), half_vae, encoders, {"tokenizer": TOKENIZER}, scheduler, defaults
    ).write(folder)
    if is_complete:
        config = folder / "text_encoder/config.json"
        write_json(config, read_json(config) | {"dtype": "float32", "torch_dtype": "float32"})


def trained_steps(folder: Path) -> dict[str, int]:
    """The number of steps that the weights in a folder were trained: {"vae": …, "unet": …}.

    Raises ValueError if the folder does not say.
    """
    file = folder / "minip2p.json"
    steps = read_json(file).get("_trained")
    if not isinstance(steps, dict) or not all(is_integer(steps.get(part)) for part in ("vae", "unet")):
        raise ValueError(f"{file}: does not say how many steps the weights were trained")
    return steps
