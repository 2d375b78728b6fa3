"""Names of tensors in single files: diffusers' and transformers' names -> those of the original codebases.

The original codebases are CompVis' latent diffusion, Stability's generative models and OpenCLIP. Our own names are
those of diffusers and transformers. Each function takes one of our names and returns the tensor's name in a single
file, without the prefix of its component. It depends on nothing but the sizes in the configuration.
"""

import re
from collections.abc import Mapping
from types import MappingProxyType

from torch import Tensor

from minip2p.config import UNetConfig, VAEConfig

# What the names of a component's tensors begin with. A file with a VAE alone has no prefix before encoder., decoder., …
UNET_PREFIX, VAE_PREFIXES = "model.diffusion_model.", ("first_stage_model.", "vae.")
BARE_VAE_PREFIXES = ("encoder.", "decoder.", "quant_conv.", "post_quant_conv.")
# The text encoders, by their names in diffusers. Encoders of OpenCLIP have names of their own, those of CLIP have the
# names of transformers.
CLIP_PREFIXES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {"text_encoder": ("cond_stage_model.transformer.", "conditioner.embedders.0.transformer.")}
)
OPENCLIP_PREFIXES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        # Stable Diffusion 2 as CompVis' code names it, and as Stability's newer code does (SD Turbo).
        "text_encoder": ("cond_stage_model.model.", "conditioner.embedders.0.model."),
        "text_encoder_2": ("conditioner.embedders.1.model.",),
    }
)

KeyMap = Mapping[str, str]  # the beginning of our name -> the beginning of the original name

RESNET: KeyMap = MappingProxyType(
    {
        "norm1": "in_layers.0",
        "conv1": "in_layers.2",
        "time_emb_proj": "emb_layers.1",
        "norm2": "out_layers.0",
        "conv2": "out_layers.3",
        "conv_shortcut": "skip_connection",
    }
)
UNET: KeyMap = MappingProxyType(
    {
        "conv_in": "input_blocks.0.0",
        "time_embedding.linear_1": "time_embed.0",
        "time_embedding.linear_2": "time_embed.2",
        "add_embedding.linear_1": "label_emb.0.0",
        "add_embedding.linear_2": "label_emb.0.2",
        "conv_norm_out": "out.0",
        "conv_out": "out.2",
    }
)
VAE_ATTENTION: KeyMap = MappingProxyType(
    {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
)
# Other names of the modules of the VAE's attention in single files: those of diffusers since 0.17 and before, which
# kohya's scripts and A1111's merges have left in them.
VAE_ATTENTION_ALTERNATIVES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "norm": ("group_norm",),
        "q": ("to_q", "query"),
        "k": ("to_k", "key"),
        "v": ("to_v", "value"),
        "proj_out": ("to_out.0", "to_out", "proj_attn"),
    }
)
VAE_RESNET: KeyMap = MappingProxyType({"conv_shortcut": "nin_shortcut"})
VAE_ENDS: KeyMap = MappingProxyType({"conv_norm_out": "norm_out"})
OPENCLIP: KeyMap = MappingProxyType(
    {
        "embeddings.position_embedding.weight": "positional_embedding",
        "embeddings.token_embedding": "token_embedding",
        "final_layer_norm": "ln_final",
        "text_projection.weight": "text_projection",
    }
)
OPENCLIP_LAYER: KeyMap = MappingProxyType(
    {
        "layer_norm1": "ln_1",
        "layer_norm2": "ln_2",
        "mlp.fc1": "mlp.c_fc",
        "mlp.fc2": "mlp.c_proj",
        "self_attn.out_proj": "attn.out_proj",
    }
)
QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")  # in OpenCLIP one tensor, attn.in_proj

# Tensors of a single file that are not read, by what writes them: regular expressions of whole names. The schedule, the
# markers and the scale are compared with the model before (`stated_facts`), and then not used as tensors either.
SCHEDULE_BUFFERS = (
    "betas",
    "alphas_cumprod",
    "alphas_cumprod_prev",
    "sqrt_alphas_cumprod",
    "sqrt_one_minus_alphas_cumprod",
    "log_one_minus_alphas_cumprod",
    "sqrt_recip_alphas_cumprod",
    "sqrt_recipm1_alphas_cumprod",
    "posterior_variance",
    "posterior_log_variance_clipped",
    "posterior_mean_coef1",
    "posterior_mean_coef2",
    "lvlb_weights",
)
UNREAD: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "the noise schedule of CompVis' training code, also inside of its model": tuple(
            rf"(model\.)?{name}" for name in SCHEDULE_BUFFERS
        ),
        "counters and factors of training": ("logvar", "scale_factor", "global_step", "epoch", r"denoiser\..*"),
        "the markers of ComfyUI": ("v_pred", "ztsnr"),
        "the moving average (EMA) of weights, of the model and of the VAE": (
            r"model_ema\..*",
            r"(first_stage_model\.|vae\.)model_ema\..*",
        ),
        "the loss of the VAE's training": (r"loss\..*", r"(first_stage_model\.|vae\.)loss\..*"),
        "position ids, a buffer of transformers": (r".*\.position_ids",),
        "the temperature of CLIP": (r".*\.logit_scale", "logit_scale"),
        "buffers of OpenCLIP": (r".*\.attn_mask",),
        "vision towers and their projections": (
            r"(cond_stage_model|conditioner\.embedders\.\d+)\.(model\.)?visual\..*",
            r"(cond_stage_model|conditioner\.embedders\.\d+)\.transformer\.(vision_model|visual_projection)\..*",
        ),
        "projections of text that are not read: that of the encoder of CLIP, and of Stable Diffusion 2": (
            r"(cond_stage_model|conditioner\.embedders\.0)\.(transformer\.)?text_projection(\.weight)?",
            r"(cond_stage_model|conditioner\.embedders\.0)\.model\.text_projection(\.weight)?",
        ),
        "safety checkers": (r"safety_checker\..*",),
        "the embeddings of textual inversion's training": (r"embedding_manager\..*",),
    }
)
IGNORED = re.compile("|".join(f"(?:{pattern})" for patterns in UNREAD.values() for pattern in patterns))


def is_ignored(name: str) -> bool:
    """Whether a tensor of a single file is known and not read."""
    return IGNORED.fullmatch(name) is not None


def replace_prefix(name: str, key_map: KeyMap) -> str:
    """Replaces the beginning of a name if the map has it; otherwise returns the name as it is."""
    for prefix, original in key_map.items():
        if name == prefix or name.startswith(prefix + "."):
            return original + name[len(prefix) :]
    return name


def compvis_unet_key(name: str, config: UNetConfig) -> str:
    """The original name of a UNet tensor.

    The original code numbers layers consecutively over all levels. A downsampler is a layer of its own; an upsampler is
    the last module of its level's last layer.
    """
    place, *rest = name.split(".")
    layers = config.layers_per_block
    if place == "mid_block":
        kind, n, *inner = rest
        if kind == "attentions":
            return ".".join(["middle_block.1", *inner])
        return f"middle_block.{2 * int(n)}.{replace_prefix('.'.join(inner), RESNET)}"
    if place not in ("down_blocks", "up_blocks"):
        return replace_prefix(name, UNET)
    level, kind, n, *inner = int(rest[0]), *rest[1:]
    first = level * (layers + 1)  # layer of the level, counted without conv_in
    if kind == "downsamplers":
        return f"input_blocks.{first + layers + 1}.0.op.{inner[-1]}"
    if kind == "upsamplers":
        module = 2 if config.up_block_types[level].startswith("CrossAttn") else 1
        return f"output_blocks.{first + layers}.{module}.conv.{inner[-1]}"
    block = f"input_blocks.{first + int(n) + 1}" if place == "down_blocks" else f"output_blocks.{first + int(n)}"
    if kind == "attentions":
        return ".".join([block, "1", *inner])
    return f"{block}.0.{replace_prefix('.'.join(inner), RESNET)}"


def compvis_vae_key(name: str, config: VAEConfig) -> str:
    """The original name of a VAE tensor. The original code counts the decoder's levels from the highest resolution."""
    half, *rest = name.split(".")
    if half not in ("encoder", "decoder"):
        return name  # quant_conv, post_quant_conv
    if rest[0] == "mid_block":
        kind, n, *inner = rest[1:]
        if kind == "attentions":
            return f"{half}.mid.attn_1.{replace_prefix('.'.join(inner), VAE_ATTENTION)}"
        return f"{half}.mid.block_{int(n) + 1}." + ".".join(inner)
    if rest[0] not in ("down_blocks", "up_blocks"):
        return f"{half}.{replace_prefix('.'.join(rest), VAE_ENDS)}"
    level, kind, n, *inner = int(rest[1]), *rest[2:]
    highest = len(config.block_out_channels) - 1
    block = f"{half}.down.{level}" if half == "encoder" else f"{half}.up.{highest - level}"
    if kind == "resnets":
        return f"{block}.block.{n}.{replace_prefix('.'.join(inner), VAE_RESNET)}"
    return f"{block}.{kind.removesuffix('rs')}.{'.'.join(inner)}"  # downsample, upsample


def openclip_key(name: str) -> str:
    """The original name of a tensor of an OpenCLIP text encoder; for q, k and v, that of the tensor that joins them."""
    head, *rest = name.split(".")
    if head != "encoder":
        return replace_prefix(name, OPENCLIP)
    n, inner = rest[1], ".".join(rest[2:])
    if inner.startswith(QKV):
        return f"transformer.resblocks.{n}.attn.in_proj_{rest[-1]}"
    return f"transformer.resblocks.{n}.{replace_prefix(inner, OPENCLIP_LAYER)}"


def convert_tensor(name: str, original_name: str, tensor: Tensor) -> Tensor:
    """Our tensor `name`, from the tensor that a single file stores as `original_name`.

    It is q, k or v out of the three that OpenCLIP joins; the transpose of OpenCLIP's text projection; the matrix of a
    1x1 convolution in the VAE's attention; or the tensor itself.
    """
    if ".in_proj_" in original_name:
        return tensor.chunk(3)["qkv".index(name.split("_proj")[0][-1])]
    if original_name.endswith(".text_projection"):  # text_projection.weight is stored as we have it
        return tensor.T.contiguous()
    if "mid_block.attentions.0.to_" in name and name.endswith(".weight"):
        return tensor.flatten(1) if set(tensor.shape[2:]) == {1} else tensor
    return tensor


def vae_attention_names(original_name: str) -> tuple[str, ...]:
    """The names that a tensor of the VAE's attention may have in a single file, the original one first."""
    before, place, rest = original_name.partition(".mid.attn_1.")
    if not place:
        return (original_name,)
    module, _, tensor = rest.rpartition(".")
    alternatives = VAE_ATTENTION_ALTERNATIVES.get(module, ())
    return (original_name, *(f"{before}{place}{other}.{tensor}" for other in alternatives))


def projection_shape(tensor: Tensor, is_linear: bool) -> Tensor:
    """The projection before or after a spatial transformer of the UNet, as a matrix or as a 1x1 convolution.

    The numbers are the same. Stable Diffusion 1 has convolutions, 2 and XL have matrices; kohya's scripts write either.
    """
    if is_linear:
        return tensor.flatten(1) if set(tensor.shape[2:]) == {1} else tensor
    return tensor[:, :, None, None] if tensor.ndim == 2 else tensor


def openclip_tensor_names(layers: int, has_projection: bool) -> list[str]:
    """Our names of all tensors of an OpenCLIP text encoder with this many layers."""
    modules = [f"encoder.layers.{n}.{module}" for n in range(layers) for module in (*OPENCLIP_LAYER, *QKV)]
    modules.append("final_layer_norm")
    names = ["embeddings.position_embedding.weight", "embeddings.token_embedding.weight"]
    if has_projection:
        names.append("text_projection.weight")
    return names + [f"{module}.{tensor}" for module in modules for tensor in ("weight", "bias")]
