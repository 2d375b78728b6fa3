"""From a folder of weights to a model."""

from pathlib import Path

import torch

from minip2p.checkpoint import load_module, shipped
from minip2p.config import OwnConfig, SchedulerConfig, UNetConfig, VAEConfig
from minip2p.model import Model
from minip2p.sched import Schedule
from minip2p.text import Text
from minip2p.unet import UNet
from minip2p.vae import VAE

WEIGHTS = "diffusion_pytorch_model.safetensors"


def load(
    where: str | Path | None = None, *, dtype: torch.dtype | None = None, device: str | torch.device | None = None
) -> Model:
    """Loads a model: the embedded one by default, or a folder in diffusers' layout.

    dtype: float32 by default. device: the CPU by default. Raises FileNotFoundError or ValueError with one line that
    names the file and what is wrong with it.
    """
    folder = shipped("tiny") if where is None else Path(where)
    dtype = dtype or torch.float32
    if dtype not in (torch.float32, torch.float16, torch.bfloat16, torch.float64):
        raise ValueError(f"dtype must be a torch dtype of floating-point numbers, not {dtype}")
    try:
        probe = torch.zeros(1, device=device or "cpu")
        probe.item()  # which the meta device, without memory, cannot
        device = probe.device
    except (RuntimeError, AssertionError) as error:  # torch says it in either way
        raise ValueError(f"device {device}: torch cannot use it: {str(error).splitlines()[0]}") from None
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder; a model is a folder with unet/, vae/, text_encoder/, "
                                "tokenizer/ and scheduler/")  # fmt: skip
    unet_config = UNetConfig.read(folder / "unet" / "config.json")
    vae_config = VAEConfig.read(folder / "vae" / "config.json")
    sched = Schedule(SchedulerConfig.read(folder / "scheduler" / "scheduler_config.json"))
    text = Text(folder, dtype=dtype, device=device)
    if text.width != unet_config.cross_attention_dim:
        raise ValueError(
            f"{folder}: the text encoder is {text.width} wide, the UNet reads {unet_config.cross_attention_dim}"
        )
    unet = load_module(lambda: UNet(unet_config), folder / "unet" / WEIGHTS, dtype=dtype, device=device)
    vae = load_module(lambda: VAE(vae_config), folder / "vae" / WEIGHTS, dtype=dtype, device=device)
    channels = unet_config.in_channels, unet_config.out_channels, vae_config.latent_channels
    if len(set(channels)) > 1:
        raise ValueError(f"{folder}: the UNet reads {channels[0]} channels and predicts {channels[1]}, where the VAE's "
                         f"latents have {channels[2]}: only models where these are equal are supported")  # fmt: skip
    own = folder / "minip2p.json"  # what diffusers' layout has no place for
    guidance = OwnConfig.read(own).guidance if own.exists() else OwnConfig().guidance
    return Model(unet, vae, text, sched, guidance)
