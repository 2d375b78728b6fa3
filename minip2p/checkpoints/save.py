"""Writes a model as a folder in diffusers' layout, which both diffusers and `minip2p.load` open."""

import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from torch import Tensor, nn

from minip2p.checkpoints.components import Components
from minip2p.checkpoints.diffusers_folder import NETWORK_STEM, TEXT_ENCODER_STEM
from minip2p.checkpoints.text_encoders import load_tokenizer
from minip2p.config import Config, SchedulerConfig
from minip2p.io.files import atomic_folder, write_json
from minip2p.io.tensors import write_tensors
from minip2p.unet import UNet
from minip2p.vae import VAE

DIFFUSERS_VERSION: Mapping[str, str] = MappingProxyType({"_diffusers_version": "0.42.0"})


@dataclass(frozen=True)
class DiffusersWriter:
    """What is written of a model.

    encoders: the text encoders, by the names of their folders. tokenizers: the folders to copy the tokenizers from, by
    the names of their folders in a checkpoint. sampling_defaults: the contents of minip2p.json; if it names a model
    to take parts from (`SamplingDefaults.parts_from`), the VAE, the encoders and the tokenizers are not written.
    zero_empty_prompt: see `minip2p.text.encoder.TextEncoder`.
    """

    unet: UNet
    vae: VAE
    encoders: Mapping[str, Any]
    tokenizers: Mapping[str, Path]
    scheduler: SchedulerConfig
    sampling_defaults: Mapping[str, Any]
    zero_empty_prompt: bool = False

    def write(self, folder: Path) -> None:
        """Writes the folder, and minip2p.json last: a folder without it was not written to the end."""
        (folder / "minip2p.json").unlink(missing_ok=True)
        self.write_network(folder / "unet", self.unet, "UNet2DConditionModel")
        write_config(
            folder / "scheduler/scheduler_config.json", self.scheduler, self.scheduler_class, clip_sample=False
        )
        if self.sampling_defaults.get("parts_from"):
            for name in ("vae", *self.encoders, *self.tokenizers):
                shutil.rmtree(folder / name, ignore_errors=True)  # of another model that was written here
        else:
            self.write_parts(folder)
        write_json(folder / "model_index.json", self.model_index())
        write_json(folder / "minip2p.json", self.sampling_defaults)

    def write_parts(self, folder: Path) -> None:
        """Writes the VAE, the text encoders and the tokenizers."""
        self.write_network(folder / "vae", self.vae, "AutoencoderKL")
        for name, encoder in self.encoders.items():
            write_text_encoder(folder / name, encoder)
        for name, source in self.tokenizers.items():
            if (folder / name).resolve() != source.resolve():
                shutil.copytree(source, folder / name, dirs_exist_ok=True)

    @property
    def scheduler_class(self) -> str:
        """The name of diffusers' scheduler."""
        return self.scheduler.class_name or "DDIMScheduler"

    def write_network(self, folder: Path, network: UNet | VAE, class_name: str) -> None:
        write_config(folder / "config.json", network.config, class_name)
        write_weights(folder / f"{NETWORK_STEM}.safetensors", plain_tensors(network))

    def model_index(self) -> dict[str, Any]:
        """The contents of model_index.json: the classes of the pipeline and of its components."""
        absent = [None, None]
        is_xl = len(self.encoders) > 1
        index: dict[str, Any] = {"_class_name": self.pipeline_class(), **DIFFUSERS_VERSION, "feature_extractor": absent}
        if is_xl:
            index |= {"image_encoder": absent, "force_zeros_for_empty_prompt": self.zero_empty_prompt}
        else:
            index |= {"requires_safety_checker": False, "safety_checker": absent}
        return index | {
            "scheduler": ["diffusers", self.scheduler_class],
            **{name: ["transformers", type(encoder).__name__] for name, encoder in self.encoders.items()},
            **{name: ["transformers", "CLIPTokenizer"] for name in self.tokenizers},
            "unet": ["diffusers", "UNet2DConditionModel"],
            "vae": ["diffusers", "AutoencoderKL"],
        }

    def pipeline_class(self) -> str:
        """The name of diffusers' pipeline, which depends on what the UNet reads besides the latents."""
        extra_channels = self.unet.config.in_channels - self.vae.config.latent_channels
        if extra_channels == 0:
            task = ""
        elif extra_channels == self.vae.config.latent_channels:
            task = "InstructPix2Pix"
        else:
            task = "Inpaint"
        return f"StableDiffusion{'XL' if len(self.encoders) > 1 else ''}{task}Pipeline"


def write_text_encoder(folder: Path, encoder: Any) -> None:
    """Writes a `transformers` text encoder, with the tensor names of the official files."""
    tensors = plain_tensors(encoder)
    # The official files have "text_model." before every name; transformers 5 has dropped it.
    prefix = "" if any(name.startswith("text_model.") for name in tensors) else "text_model."
    prefixed = {prefix + name: tensor for name, tensor in tensors.items()}
    write_weights(folder / f"{TEXT_ENCODER_STEM}.safetensors", prefixed)
    dtype = str(next(iter(tensors.values())).dtype).removeprefix("torch.")
    fields = {"architectures": [type(encoder).__name__], "dtype": dtype, "torch_dtype": dtype}
    write_json(folder / "config.json", encoder.config.to_dict() | fields)


def plain_tensors(network: nn.Module) -> dict[str, Tensor]:
    """The tensors of a network in the contiguous memory format, on the CPU."""
    return {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}


def write_weights(path: Path, tensors: Mapping[str, Tensor]) -> None:
    write_tensors(tensors, path, {"format": "pt"})  # transformers opens no file without this metadata


def write_config(path: Path, config: Config, class_name: str, **extra_fields: Any) -> None:
    write_json(path, {"_class_name": class_name, **DIFFUSERS_VERSION, **asdict(config), **extra_fields})


def save_model(components: Components, folder: Path, guidance_scale: float) -> None:
    """Writes a model as a folder in diffusers' layout. If it fails, nothing is left.

    guidance_scale: the model's default, for its minip2p.json. Raises FileExistsError if `folder` exists.
    """
    text = components.text
    tokenizers = {
        encoder.name.replace("text_encoder", "tokenizer"): encoder.tokenizer_path for encoder in text.clip_encoders
    }
    writer = DiffusersWriter(
        unet=components.unet,
        vae=components.vae,
        encoders=text.encoders,
        tokenizers=tokenizers,
        scheduler=components.scheduler.config,
        sampling_defaults={"guidance": guidance_scale}
        | ({"words": sorted(text.known_words)} if text.known_words else {}),
        zero_empty_prompt=text.zero_empty_prompt,
    )
    with atomic_folder(folder) as partial:
        writer.write(partial)
        for encoder in text.clip_encoders:  # the words of embeddings are not in the tokenizer's own files
            if len(encoder.tokenizer) > len(load_tokenizer(encoder.tokenizer_path)):
                encoder.tokenizer.save_pretrained(partial / encoder.name.replace("text_encoder", "tokenizer"))
