"""Writes a model as a folder in diffusers' layout, which it and `load` open."""

import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from torch import Tensor, nn

from minip2p.checkpoints.components import Components
from minip2p.config import Config, SchedulerConfig
from minip2p.io.files import temporary_name, write_json
from minip2p.io.tensors import write_tensors
from minip2p.unet import UNet
from minip2p.vae import VAE

DIFFUSERS_VERSION: Mapping[str, str] = MappingProxyType({"_diffusers_version": "0.42.0"})


@dataclass(frozen=True)
class DiffusersWriter:
    """What is written of a model. encoders, tokenizers: by the names of their folders; the latter as folders. own: of
    minip2p.json. zeros: an empty negative prompt is nothing."""

    unet: UNet
    vae: VAE
    encoders: Mapping[str, Any]
    tokenizers: Mapping[str, Path]
    scheduler: SchedulerConfig
    sampling_defaults: Mapping[str, Any]
    zero_empty_prompt: bool = False

    def write(self, folder: Path) -> None:
        """Each file whole; minip2p.json last, so that a folder which was left half-written does not have it."""
        (folder / "minip2p.json").unlink(missing_ok=True)
        for part, module, kind in (("unet", self.unet, "UNet2DConditionModel"), ("vae", self.vae, "AutoencoderKL")):
            write_config(folder / part / "config.json", module.config, kind)
            write_tensors(
                plain_tensors(module), folder / part / "diffusion_pytorch_model.safetensors", {"format": "pt"}
            )
        write_config(folder / "scheduler/scheduler_config.json", self.scheduler, "DDIMScheduler", clip_sample=False)
        for part, encoder in self.encoders.items():
            tensors, kind = plain_tensors(encoder), type(encoder).__name__
            # The official files have "text_model." before every name; transformers 5 itself has dropped it.
            prefix = "" if any(name.startswith("text_model.") for name in tensors) else "text_model."
            write_tensors(
                {prefix + name: t for name, t in tensors.items()}, folder / part / "model.safetensors", {"format": "pt"}
            )
            dtype = str(next(iter(tensors.values())).dtype).removeprefix("torch.")
            write_json(
                folder / part / "config.json",
                encoder.config.to_dict() | {"architectures": [kind]} | {"dtype": dtype, "torch_dtype": dtype},
            )
        for part, files in self.tokenizers.items():
            if (folder / part).resolve() != files.resolve():
                shutil.copytree(files, folder / part, dirs_exist_ok=True)
        write_json(folder / "model_index.json", self.index)
        write_json(folder / "minip2p.json", self.sampling_defaults)

    @property
    def index(self) -> dict[str, Any]:
        """model_index.json: which class each part is of."""
        nothing, xl = [None, None], len(self.encoders) > 1
        extra = self.unet.config.in_channels - self.vae.config.latent_channels  # a picture's, or a mask's as well
        does = "" if not extra else "InstructPix2Pix" if extra == self.vae.config.latent_channels else "Inpaint"
        index: dict[str, Any] = {"_class_name": f"StableDiffusion{'XL' if xl else ''}{does}Pipeline"}
        index |= {**DIFFUSERS_VERSION, "feature_extractor": nothing}
        index |= {"image_encoder": nothing} if xl else {"requires_safety_checker": False, "safety_checker": nothing}
        index |= {"force_zeros_for_empty_prompt": self.zero_empty_prompt} if xl else {}
        return index | {
            "scheduler": ["diffusers", "DDIMScheduler"],
            **{part: ["transformers", type(encoder).__name__] for part, encoder in self.encoders.items()},
            **{part: ["transformers", "CLIPTokenizer"] for part in self.tokenizers},
            "unet": ["diffusers", "UNet2DConditionModel"],
            "vae": ["diffusers", "AutoencoderKL"],
        }


def plain_tensors(module: nn.Module) -> dict[str, Tensor]:
    """The module's tensors in the plain memory format, on the CPU."""
    return {name: tensor.detach().cpu().contiguous() for name, tensor in module.state_dict().items()}


def write_config(path: Path, config: Config, kind: str, **more: Any) -> None:
    write_json(path, {"_class_name": kind, **DIFFUSERS_VERSION, **asdict(config), **more})


def save_model(parts: Components, folder: Path, guidance: float) -> None:
    """Writes a model's folder, whole or not at all. Raises FileExistsError where there is something of that name."""
    if folder.exists():
        raise FileExistsError(f"{folder}: is there already: choose another name for the model's folder")
    text, partial = parts.text, temporary_name(folder)
    tokenizers = {tower.part.replace("text_encoder", "tokenizer"): tower.tokenizer_path for tower in text.clip_encoders}
    own = {"guidance": guidance}
    saved = DiffusersWriter(
        parts.unet, parts.vae, text.encoders, tokenizers, parts.scheduler.config, own, text.zero_empty_prompt
    )
    try:
        saved.write(partial)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
