"""From a folder, a file or a name on the hub to the components of a model."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from minip2p.checkpoints.components import Components
from minip2p.checkpoints.diffusers_folder import NETWORK_STEM, DiffusersFolder
from minip2p.checkpoints.file_formats import OTHER_SUFFIXES, PICKLED_SUFFIXES
from minip2p.checkpoints.files import CheckpointFiles
from minip2p.checkpoints.hub import WEIGHT_FOLDERS, download, is_repo_id
from minip2p.checkpoints.origin import CheckpointOrigin
from minip2p.checkpoints.pipeline_rules import correct_outdated, default_guidance
from minip2p.checkpoints.single_file import SingleFile
from minip2p.checkpoints.strict import build_on_meta, load_state
from minip2p.checkpoints.text_encoders import load_text
from minip2p.config import LCMSchedulerConfig, SamplingDefaults, SchedulerConfig, UNetConfig, VAEConfig
from minip2p.io.files import shipped_weights
from minip2p.sched import DDIMScheduler, LCMScheduler
from minip2p.text.encoder import TextEncoder
from minip2p.unet import UNet
from minip2p.vae import VAE

VAE_FOLDER = "vae/"
WITHOUT_VAE = tuple(folder for folder in WEIGHT_FOLDERS if folder != VAE_FOLDER)
SCALING_FIELDS = ("scaling_factor", "shift_factor", "force_upcast")
SHIPPED = "tiny", "tiny-fast", "tiny-instruct"  # the models that ship; the first is the default


def model_location(where: str | Path | None) -> str | Path:
    """Where a model is: for None and the name of a model that ships, its folder. A file or folder that has this name in
    the working directory comes before it. Raises FileNotFoundError for another bare name."""
    if where is None:
        return shipped_weights(SHIPPED[0])
    if isinstance(where, str) and where in SHIPPED and not Path(where).exists():
        return shipped_weights(where)
    if isinstance(where, str) and re.fullmatch(r"[\w-]+", where) and not Path(where).exists():
        raise FileNotFoundError(
            f"{where}: no such file or folder, and the models that ship are {', '.join(SHIPPED[:-1])} and {SHIPPED[-1]}"
        )
    return where


def is_shipped(where: str | Path | None) -> bool:
    """Whether a model is one of those that ship, by its name."""
    return model_location(where) in [shipped_weights(name) for name in SHIPPED]


def load_components(
    where: str | Path | None = None,
    *,
    dtype: torch.dtype | None = None,
    device: str | torch.device | None = None,
    vae: str | Path | None = None,
    config: str | Path | None = None,
    scheduler: str | None = None,
) -> tuple[Components, float]:
    """Loads a model. The arguments are those of `minip2p.load`, which see.

    Returns the components, and the guidance scale to use where none is given.
    Raises FileNotFoundError or ValueError with one line that names the file and what is wrong with it.
    """
    dtype = dtype or torch.float32
    if dtype not in (torch.float32, torch.float16, torch.bfloat16, torch.float64):
        raise ValueError(f"dtype must be a torch dtype of floating-point numbers, not {dtype}")
    device = check_device("cpu" if device is None else device)
    files = open_checkpoint(model_location(where), config, WEIGHT_FOLDERS if vae is None else WITHOUT_VAE)
    unet_file, scheduler_file = str(files.config_file("unet")), str(files.config_file("scheduler"))
    unet_fields, scheduler_fields = correct_outdated(
        files.config("unet"), files.config("scheduler"), unet_file, scheduler_file
    )
    unet_config = UNetConfig.from_dict(unet_fields, unet_file)
    noise_schedule = make_scheduler(scheduler, scheduler_fields, scheduler_file)
    text, weights = load_text(files, dtype=dtype, device=device)
    text = replace(text, known_words=frozenset(sampling_defaults(files.root).words))
    check_text_width(files, text, unet_config)

    unet_files, vae_files = files, files if vae is None else open_checkpoint(vae, None, (VAE_FOLDER,))
    if not vae_files.has("vae"):
        raise ValueError(f"{vae_files.location}: has no VAE: give one as vae (--vae on the command line)")
    vae_fields = with_vae_scaling(vae_files.config("vae"), files)
    vae_config = VAEConfig.from_dict(vae_fields, str(vae_files.config_file("vae")))
    unet = build_on_meta(lambda: UNet(unet_config), unet_files.config_file("unet"))
    tensors, weights["unet"] = unet_files.tensors("unet", dtype)
    load_state(unet, tensors, weights["unet"], dtype=dtype, device=device)
    network = build_on_meta(lambda: VAE(vae_config), vae_files.config_file("vae"))
    is_xl = unet_config.addition_embed_type is not None
    vae_dtype = torch.float32 if is_xl and dtype == torch.float16 and vae_config.force_upcast else dtype
    tensors, weights["vae"] = vae_files.tensors("vae", vae_dtype)
    load_state(network, tensors, weights["vae"], dtype=vae_dtype, device=device)
    check_channels(files, unet_config, vae_config)

    labels = {"Model": display_name(where)} | ({} if vae is None else {"VAE": display_name(vae)})
    components = Components(unet, network, text, noise_schedule, CheckpointOrigin(weights, labels))
    is_configured = noise_schedule == make_scheduler(None, scheduler_fields, scheduler_file)
    if (files.root / "minip2p.json").exists() and (is_configured or scheduler == "ddim"):
        return components, sampling_defaults(files.root).guidance
    names = [*location_names(where), *location_names(config), *files.names()]
    scheduler_class = str(scheduler_fields.get("_class_name", ""))
    return components, default_guidance(
        noise_schedule.config, scheduler_class, names, display_name(where), unet=unet_config
    )


def make_scheduler(name: str | None, fields: Mapping[str, Any], file: str) -> DDIMScheduler:
    """The scheduler of a name, "ddim" or "lcm", or None for the one that its configuration names, with these fields.

    file: the configuration's. Raises ValueError for another name, and for fields that are not supported.
    """
    if name not in (None, "ddim", "lcm"):
        raise ValueError(f"the scheduler is ddim or lcm, not {name!r}")
    if name == "lcm" or (name is None and fields.get("_class_name") == LCMSchedulerConfig.class_name):
        own_fields = {field: value for field, value in fields.items() if field != "_class_name"}
        return LCMScheduler(LCMSchedulerConfig.from_dict(own_fields, file))
    return DDIMScheduler(SchedulerConfig.from_dict(fields, file))


def check_text_width(files: CheckpointFiles, text: TextEncoder, unet: UNetConfig) -> None:
    """Raises ValueError where the text embeddings are not what the UNet reads."""
    is_xl = unet.addition_embed_type is not None
    if text.width != unet.cross_attention_dim or text.has_two_encoders != is_xl:
        raise ValueError(
            f"{files.location}: the text encoder is {text.width} wide, but the UNet reads "
            f"{unet.cross_attention_dim} of {1 + is_xl} encoders"
        )
    sizes_width = 6 * (unet.addition_time_embed_dim or 0)
    if is_xl and unet.projection_class_embeddings_input_dim != text.pooled_width + sizes_width:
        raise ValueError(
            f"{files.config_file('unet')}: projection_class_embeddings_input_dim is not the width of the pooled text "
            f"embedding, {text.pooled_width}, plus six times addition_time_embed_dim"
        )


def check_channels(files: CheckpointFiles, unet: UNetConfig, vae: VAEConfig) -> None:
    """Raises ValueError where the UNet does not process the VAE's latents."""
    latents, inputs = vae.latent_channels, unet.in_channels
    if unet.out_channels != latents or inputs - latents not in (0, latents, latents + 1):
        raise ValueError(
            f"{files.location}: the UNet reads {inputs} channels and predicts {unet.out_channels}, but the VAE's "
            f"latents have {latents}; a UNet may read the latents of an image and a mask besides"
        )


def display_name(where: str | Path | None) -> str:
    """A model's or a VAE's name: its name on the hub, or that of its folder or file."""
    if where is None:
        return "tiny"
    return where if isinstance(where, str) and is_repo_id(where) else Path(where).resolve().name


def location_names(where: str | Path | None) -> list[str]:
    """The names that a location gives a model: its own, and that of the repository whose cached copy it is."""
    if where is None:
        return []
    return [display_name(where), *(part for part in Path(where).parts if part.startswith("models--"))]


def with_vae_scaling(vae: dict[str, Any], files: CheckpointFiles) -> dict[str, Any]:
    """A VAE's configuration; the scaling that it does not state is taken from the model's own VAE."""
    defaults = {} if "scaling_factor" in vae else files.config("vae")
    return {name: defaults[name] for name in SCALING_FIELDS if name in defaults} | vae


def open_checkpoint(where: str | Path, config: str | Path | None, folders: Sequence[str]) -> CheckpointFiles:
    """The files of a model.

    config: for a single file, a folder or a name on the hub with its configurations and tokenizers. folders: what will
    be read ("unet/", "vae/", …), which limits a download; a single one may be the location itself, as VAEs are shared.
    """
    only = folders[0].strip("/") if len(folders) == 1 else None
    is_on_hub = isinstance(where, str) and is_repo_id(where) and not is_weight_file(Path(where))
    where = download(str(where), folders) if is_on_hub else Path(where)
    if config is not None:
        config = download(config, ()) if isinstance(config, str) and is_repo_id(config) else Path(config)
    if only and where.is_file() and where.name.startswith(NETWORK_STEM) and (where.parent / "config.json").is_file():
        # A component's file in diffusers' names. The folder is resolved because the hub's cache links to its files.
        folder = where.parent.resolve()
        return DiffusersFolder(folder.parent, {only: folder.name}, where)
    if where.is_file() and where.suffix == ".json":
        raise ValueError(f"{where}: is a configuration without weights: give its folder, or a .safetensors file")
    if where.is_file():
        return SingleFile(where, config)
    if not where.exists() and (config is not None or is_weight_file(where)):
        raise FileNotFoundError(f"{where}: no such file")
    if config is not None:
        raise ValueError(f"{config}: a config is for a single file, and {where} is a folder, which has its own")
    if only and where.is_dir() and not (where / only).is_dir() and (where / "config.json").is_file():
        return DiffusersFolder(where.resolve().parent, {only: where.resolve().name})
    return DiffusersFolder(where)


def is_weight_file(path: Path) -> bool:
    """Whether a path has the suffix of a file of weights, and so is neither a folder nor a name on the hub."""
    return path.suffix in (".safetensors", *PICKLED_SUFFIXES, *OTHER_SUFFIXES)


def sampling_defaults(root: Path) -> SamplingDefaults:
    """The contents of the model's own minip2p.json; the defaults where it has none."""
    file = root / "minip2p.json"
    return SamplingDefaults.read(file) if file.exists() else SamplingDefaults()


def check_device(device: str | torch.device) -> torch.device:
    """The device. Raises ValueError for one that torch cannot use."""
    try:
        probe = torch.zeros(1, device=torch.device(device))  # which refuses an empty name
        probe.item()  # fails on the meta device, which has no memory
        return probe.device
    except (RuntimeError, AssertionError):  # torch raises either
        raise ValueError(
            f"device {device}: torch cannot use it; here it can use {' or '.join(usable_devices())}"
        ) from None


def usable_devices() -> list[str]:
    """The devices of this machine that torch can use, by name."""
    cuda = [f"cuda:{n}" for n in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    return ["cpu", *cuda, *(["mps"] if torch.backends.mps.is_available() else [])]
