"""Writes a model as an official Stable Diffusion folder: what diffusers' StableDiffusionPipeline opens, and we."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from minip2p.checkpoint import shipped
from minip2p.config import Config, SchedulerConfig
from minip2p.tiny.loop import write_json, write_safetensors
from minip2p.unet import UNet
from minip2p.vae import VAE

TOKENIZER = shipped("tiny") / "tokenizer"
GUIDANCE = 4.0  # what the model card recommends
INDEX = MappingProxyType(
    {
        "_class_name": "StableDiffusionPipeline",
        "_diffusers_version": "0.42.0",
        "feature_extractor": [None, None],
        "requires_safety_checker": False,
        "safety_checker": [None, None],
        "scheduler": ["diffusers", "DDIMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
)


def tokenizer() -> Any:
    """The tiny model's tokenizer: CLIP's own class on a cut vocabulary."""
    from transformers import CLIPTokenizer

    return CLIPTokenizer.from_pretrained(TOKENIZER, local_files_only=True)


def text_encoder(width: int) -> Any:
    """A small CLIP text encoder with random weights: 3 layers, 4 heads."""
    from transformers import CLIPTextConfig, CLIPTextModel

    words = tokenizer()
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


def halves(module: nn.Module, prefix: str = "") -> dict[str, torch.Tensor]:
    """The module's tensors in float16, in the plain memory format."""
    return {prefix + name: t.half().contiguous() for name, t in module.state_dict().items()}


def export(
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
    (folder / "minip2p.json").unlink(missing_ok=True)

    def config(name: str, of: Config, class_name: str) -> None:
        write_json(folder / name, {"_class_name": class_name, "_diffusers_version": "0.42.0"} | asdict(of))

    config("unet/config.json", unet.config, "UNet2DConditionModel")
    config("vae/config.json", replace(vae.config, scaling_factor=scaling_factor), "AutoencoderKL")
    config("scheduler/scheduler_config.json", sched, "DDIMScheduler")
    scheduler = folder / "scheduler/scheduler_config.json"
    write_json(scheduler, json.loads(scheduler.read_text()) | {"clip_sample": False})
    weights = "diffusion_pytorch_model.safetensors"
    write_safetensors(halves(unet), folder / "unet" / weights, {"format": "pt"})
    write_safetensors(halves(vae), folder / "vae" / weights, {"format": "pt"})
    # The official files have "text_model." before every name; transformers 5 itself has dropped it.
    names = halves(text, "" if "text_model.final_layer_norm.weight" in text.state_dict() else "text_model.")
    write_safetensors(names, folder / "text_encoder" / "model.safetensors", {"format": "pt"})
    said = {"architectures": ["CLIPTextModel"], "dtype": "float32", "torch_dtype": "float32"}
    write_json(folder / "text_encoder/config.json", text.config.to_dict() | said)
    if folder.resolve() != TOKENIZER.parent.resolve():
        for file in TOKENIZER.iterdir():
            (folder / "tokenizer").mkdir(exist_ok=True)
            (folder / "tokenizer" / file.name).write_bytes(file.read_bytes())
    write_json(folder / "model_index.json", INDEX)
    write_json(folder / "minip2p.json", {"guidance": GUIDANCE, "_trained": trained})
