"""From files of weights to a model."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from minip2p.checkpoints.diffusers_folder import STEMS, DiffusersFolder
from minip2p.checkpoints.hub import PARTS, download, is_repo_id
from minip2p.checkpoints.origin import CheckpointOrigin
from minip2p.checkpoints.single_file import SingleFile
from minip2p.checkpoints.strict import build_on_meta, load_state
from minip2p.config import SamplingDefaults, SchedulerConfig, UNetConfig, VAEConfig
from minip2p.io.files import shipped_weights
from minip2p.pipeline import Pipeline
from minip2p.sched import DDIMScheduler
from minip2p.text.encoder import CheckpointFiles, TextEncoder
from minip2p.unet import UNet
from minip2p.vae import VAE

VAE_PART = "vae/"


WITHOUT_VAE = tuple(part for part in PARTS if part != VAE_PART)


SCALING_FIELDS = ("scaling_factor", "shift_factor", "force_upcast")


def load(
    where: str | Path | None = None,
    *,
    dtype: torch.dtype | None = None,
    device: str | torch.device | None = None,
    vae: str | Path | None = None,
    config: str | Path | None = None,
) -> Pipeline:
    """Loads a model: the embedded one by default; a folder in diffusers' layout; a single .safetensors file in the
    names of the original codes; or, by its name (org/name), one of the hub.

    dtype: float32 by default. device: the CPU by default. vae: a folder or a file with another VAE. config: for a
    single file, which has none, a folder, or a name on the hub, with its family's configurations and tokenizers. Raises
    FileNotFoundError or ValueError with one line that names the file and what is wrong with it.
    """
    dtype = dtype or torch.float32
    if dtype not in (torch.float32, torch.float16, torch.bfloat16, torch.float64):
        raise ValueError(f"dtype must be a torch dtype of floating-point numbers, not {dtype}")
    device = check_device(device or "cpu")
    files = open_checkpoint(
        shipped_weights("tiny") if where is None else where, config, PARTS if vae is None else WITHOUT_VAE
    )
    unet_config = UNetConfig.from_dict(files.config("unet"), str(files.config_file("unet")))
    sched = DDIMScheduler(SchedulerConfig.from_dict(files.config("scheduler"), str(files.config_file("scheduler"))))
    text = TextEncoder(files, dtype=dtype, device=device)
    xl = unet_config.addition_embed_type is not None
    if text.width != unet_config.cross_attention_dim or text.has_two_encoders != xl:
        raise ValueError(
            f"{files.location}: the text encoder is {text.width} wide, the UNet reads "
            f"{unet_config.cross_attention_dim} of {1 + xl} encoders"
        )
    if xl and unet_config.projection_class_embeddings_input_dim != text.pooled_width + 6 * (
        unet_config.addition_time_embed_dim or 0
    ):
        raise ValueError(
            f"{files.config_file('unet')}: projection_class_embeddings_input_dim is not the prompt's "
            f"{text.pooled_width} and six times addition_time_embed_dim"
        )
    parts: dict[str, Any] = {}
    read: dict[str, Path] = {tower.part: tower.file for tower in text.clip_encoders}
    others = files if vae is None else open_checkpoint(vae, None, (VAE_PART,))
    vae_config = VAEConfig.from_dict(with_vae_scaling(others.config("vae"), files), str(others.config_file("vae")))
    wide = torch.float32 if xl and dtype == torch.float16 and vae_config.force_upcast else dtype
    for part, own, build, kind in (
        ("unet", files, lambda: UNet(unet_config), dtype),
        ("vae", others, lambda: VAE(vae_config), wide),
    ):
        module, (tensors, read[part]) = build_on_meta(build, own.config_file(part)), own.tensors(part)
        parts[part] = load_state(module, tensors, read[part], dtype=kind, device=device)
    latents, reads = vae_config.latent_channels, unet_config.in_channels
    if unet_config.out_channels != latents or reads - latents not in (0, latents, latents + 1):
        raise ValueError(
            f"{files.location}: the UNet reads {reads} channels and predicts {unet_config.out_channels},"
            f" where the VAE's latents have {latents}; a picture's and a mask may be beside"
        )
    said = {"Pipeline": display_name(where)} | ({} if vae is None else {"VAE": display_name(vae)})
    return Pipeline(
        text=text,
        scheduler=sched,
        default_guidance=default_guidance(files.root, sched, xl),
        origin=CheckpointOrigin(read, said),
        **parts,
    )


def display_name(where: str | Path | None) -> str:
    """A model's or a VAE's name: the hub's, or its folder's or file's."""
    if where is None:
        return "tiny"
    return where if isinstance(where, str) and is_repo_id(where) else Path(where).resolve().name


def with_vae_scaling(vae: dict[str, Any], files: CheckpointFiles) -> dict[str, Any]:
    """A VAE's configuration; of one that does not say how its latents are scaled, by the model's own."""
    own = {} if "scaling_factor" in vae else files.config("vae")
    return {name: own[name] for name in SCALING_FIELDS if name in own} | vae


def open_checkpoint(where: str | Path, config: str | Path | None, parts: Sequence[str]) -> CheckpointFiles:
    """The files of a model, of which these parts are read. If it is one, that may stand alone in the folder."""
    alone = parts[0].strip("/") if len(parts) == 1 else None
    where = download(where, parts) if isinstance(where, str) and is_repo_id(where) else Path(where)
    if config is not None:
        config = download(config, ()) if isinstance(config, str) and is_repo_id(config) else Path(config)
    if alone and where.is_file() and where.name.startswith(STEMS[0]) and (where.parent / "config.json").is_file():
        folder = where.parent.resolve()  # a part's own file, in diffusers' names; the hub's cache has links to files
        return DiffusersFolder(folder.parent, {alone: folder.name}, where)
    if where.is_file():
        return SingleFile(where, config)
    if config is not None:
        raise ValueError(f"{config}: a config is for a single file, and {where} is a folder, which has its own")
    if alone and where.is_dir() and not (where / alone).is_dir() and (where / "config.json").is_file():
        return DiffusersFolder(where.resolve().parent, {alone: where.resolve().name})
    return DiffusersFolder(where)


def default_guidance(where: Path, sched: DDIMScheduler, xl: bool) -> float:
    """What a model wants where none is given: its own file's, beside model_index.json, which diffusers' layout has no
    place for; 1, and so no unconditional rows, of models that were distilled for few steps, which trailing time steps
    give away; else the default of diffusers' text-to-image pipelines."""
    if (where / "minip2p.json").exists():
        return SamplingDefaults.read(where / "minip2p.json").guidance
    if sched.config.timestep_spacing == "trailing":
        return 1.0
    return 5.0 if xl else SamplingDefaults().guidance


def check_device(device: str | torch.device) -> torch.device:
    """The device. Raises ValueError for one that torch cannot use."""
    try:
        probe = torch.zeros(1, device=device)
        probe.item()  # which the meta device, without memory, cannot
        return probe.device
    except (RuntimeError, AssertionError) as error:  # torch says it in either way
        raise ValueError(f"device {device}: torch cannot use it: {str(error).splitlines()[0]}") from None
