"""What a file of weights is that cannot be loaded: by its first bytes, and by the names of its tensors."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType

from minip2p.checkpoints.key_maps import UNET_PREFIX
from minip2p.io.contents import describe_other, first_bytes, is_picture, is_safetensors
from minip2p.io.tensors import printable

CONVERT = "convert it to safetensors first"
PICKLED_SUFFIXES = (".bin", ".ckpt", ".pt", ".pth", ".pkl")
# What files of weights begin with that are not safetensors, in lower case -> what they are, and what to do.
FORMATS: Mapping[bytes, str] = MappingProxyType(
    {
        b"gguf": "is a GGUF file, whose weights are quantized: get the weights as safetensors",
        b"\x08\x03\x12": "is an ONNX file: get the weights as safetensors",
    }
)
PICKLED = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
OTHER_SUFFIXES: Mapping[str, str] = MappingProxyType({".gguf": "gguf", ".onnx": "\x08\x03\x12"})

WHOLE = "minip2p loads whole checkpoints: UNet, VAE and text encoder"
UNPACK = "get the file in fp16, bf16 or float32"
# Regular expressions of the beginning of a tensor's name that tells what a file is -> what it is. The first that
# matches any name is reported.
KINDS: Mapping[str, str] = MappingProxyType(
    {
        r"scaled_fp8$|.*\.(scale_weight|weight_scale|scale_input|input_scale|comfy_quant)$": (
            f"its weights are scaled fp8 numbers, which are not supported: {UNPACK}"
        ),
        r".*\.(absmax|quant_map|nested_absmax|quant_state\.\w+)$": (
            f"its weights are quantized by bitsandbytes, which is not supported: {UNPACK}"
        ),
        r"lora_(unet|te\d?)_|.*\.lora_(A|B|up|down)\.|.*\.(hada|lokr)_": (
            "is an adapter such as LoRA, not a model: give a model, and this file as its LoRA"
        ),
        r"edm_(mean|std)$|edm_vpred\.": "has EDM's noise schedule (Playground 2.5, CosXL), which is not supported",
        r"(model\.diffusion_model\.)?joint_blocks\.": "is Stable Diffusion 3, a transformer, which is not supported",
        r"(model\.diffusion_model\.)?double_blocks\.": "is Flux or another transformer, which is not supported",
        r"control_model\.|input_hint_block\.|controlnet_cond_embedding\.": "is a ControlNet, which is not supported",
        r".*\.(time_stack|motion_modules)\.": "is a video model, which is not supported",
        r"cc_projection\.": "is Zero123, which is conditioned on a view and not supported",
        r"(noise_augmentor|low_scale_model|embedder\.model\.visual)\.": (
            "is an unCLIP or upscaling model, which is not supported"
        ),
        r".*\.channelwise\.|clip_(txt_)?mapper\.": "is Stable Cascade, which is not supported",
        r"taesd_(encoder|decoder)\.": "is a TAESD autoencoder, which is not supported",
        r"(emb_params|clip_l|clip_g)$|string_to_param": "is an embedding (textual inversion), not a model",
    }
)
REFINER = "is the refiner of Stable Diffusion XL, which only finishes the latents of another model and is not supported"
REFINER_ENCODER = "conditioner.embedders.0.model.transformer."
XL_CONDITION = "model.diffusion_model.label_emb."
BARE_UNET = re.compile(r"(input_blocks|output_blocks|middle_block|down_blocks|up_blocks|mid_block|time_embed\w*)\.")


def check_format(path: Path) -> None:
    """Raises ValueError, with one line that says what it is, for a file that is clearly not safetensors.

    A file that ends in .ckpt, .bin, … and has safetensors in it passes.
    """
    if not path.is_file():
        return
    start = first_bytes(path)
    if is_safetensors(start):  # whatever it is called: the length of the header may look like a pickle
        return
    text = start.lstrip().lower()
    for beginning, sentence in FORMATS.items():
        if text.startswith(beginning) or OTHER_SUFFIXES.get(path.suffix.lower()) == beginning.decode():
            raise ValueError(f"{path}: {sentence}")
    if path.suffix.lower() in PICKLED_SUFFIXES or start.startswith(PICKLED):
        raise pickle_error(path)
    if is_picture(start):
        raise ValueError(f"{path}: is a picture, not weights")
    if other := describe_other(start):
        raise ValueError(f"{path}: {other}")


def pickle_error(file: Path) -> ValueError:
    """The error to raise for a file of pickled weights: unpickling runs code from the file."""
    return ValueError(
        f"{file}: is a pickle, which can run any program when it is opened: get the weights as safetensors"
    )


def check_kind(path: Path, names: Iterable[str]) -> None:
    """Raises ValueError, with one line, for a single file that is known and not a model or a VAE that can be loaded.

    names: of the file's tensors.
    """
    names = list(names)
    for pattern, sentence in KINDS.items():
        known = re.compile(pattern)
        for name in names:
            if known.match(name):
                raise ValueError(f"{path}: {sentence} (it has {printable(name)})")

    def has(*prefixes: str) -> bool:
        return any(name.startswith(prefixes) for name in names)

    if has(REFINER_ENCODER) and has(XL_CONDITION):
        raise ValueError(f"{path}: {REFINER}")
    network = next((name for name in names if name.startswith(UNET_PREFIX)), None)
    if network is not None and not has(UNET_PREFIX + "input_blocks.", UNET_PREFIX + "output_blocks."):
        raise ValueError(
            f"{path}: its network is not the UNet of Stable Diffusion 1, 2 or XL, and others are not supported (it has "
            f"{printable(network)})"
        )
    has_unet, has_text = network is not None, has("cond_stage_model.", "conditioner.embedders.")
    if (has_unet and not has_text) or (not has_unet and any(BARE_UNET.match(name) for name in names)):
        raise ValueError(f"{path}: is a UNet alone: {WHOLE}")
