"""The names of the original codes (CompVis' latent diffusion, Stability's generative models, OpenCLIP) for our tensors.

Ours are diffusers' and transformers'; each function takes one of them and says what the tensor is called in a single
file, behind the part's prefix. What a name is depends on the sizes in the config alone.
"""

import re
from collections.abc import Mapping
from types import MappingProxyType

from torch import Tensor

from minip2p.config import UNetConfig, VAEConfig

KeyMap = Mapping[str, str]


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


# What may be ignored: averages of the weights, buffers that the schedule makes anew, positions, CLIP's temperature.
IGNORED = re.compile(
    r"model_ema\.|.*position_ids$|.*logit_scale$|(alphas_cumprod|betas|log_one_minus|sqrt_|posterior_|lvlb_weights|"
    r"logvar|loss\.|denoiser\.|scale_factor|model\.(alphas|betas|sqrt|log|posterior)|global_step)"
)


def replace_prefix(name: str, names: KeyMap) -> str:
    """The name, its beginning exchanged; as it is where none of the names is its beginning."""
    for ours, theirs in names.items():
        if name == ours or name.startswith(ours + "."):
            return theirs + name[len(ours) :]
    return name


def compvis_unet_key(name: str, config: UNetConfig) -> str:
    """Layers are numbered through over all levels, and a resampler is one of them, or the last one's last part."""
    place, *rest = name.split(".")
    layers = config.layers_per_block
    if place == "mid_block":
        kind, n, *inner = rest
        if kind == "attentions":
            return ".".join(["middle_block.1", *inner])
        return f"middle_block.{2 * int(n)}.{replace_prefix('.'.join(inner), RESNET)}"
    if place not in ("down_blocks", "up_blocks"):
        return replace_prefix(name, UNET)
    level, kind, n, *inner = int(rest[0]), *rest[1:3], *rest[3:]
    down = place == "down_blocks"
    block = ("input_blocks.%d" if down else "output_blocks.%d") % (level * (layers + 1) + int(n) + down)
    if kind == "resnets":
        return f"{block}.0.{replace_prefix('.'.join(inner), RESNET)}"
    if kind == "attentions":
        return ".".join([block, "1", *inner])
    if kind == "downsamplers":
        return f"input_blocks.{(level + 1) * (layers + 1)}.0.op.{inner[-1]}"
    last = 2 if config.up_block_types[level].startswith("CrossAttn") else 1
    return f"output_blocks.{level * (layers + 1) + layers}.{last}.conv.{inner[-1]}"


def compvis_vae_key(name: str, config: VAEConfig) -> str:
    """Levels of the decoder are counted from the picture's side."""
    half, *rest = name.split(".")
    if half not in ("encoder", "decoder"):
        return name  # quant_conv, post_quant_conv
    if rest[0] == "mid_block":
        kind, n, *inner = rest[1:]
        if kind == "attentions":
            return f"{half}.mid.attn_1.{replace_prefix('.'.join(inner), VAE_ATTENTION)}"
        return f"{half}.mid.block_{int(n) + 1}." + ".".join(inner)
    if rest[0] in ("down_blocks", "up_blocks"):
        level, kind, n, *inner = int(rest[1]), *rest[2:4], *rest[4:]
        side = (
            f"{half}.down.{level}" if half == "encoder" else f"{half}.up.{len(config.block_out_channels) - 1 - level}"
        )
        if kind == "resnets":
            return f"{side}.block.{n}.{replace_prefix('.'.join(inner), {'conv_shortcut': 'nin_shortcut'})}"
        return f"{side}.{kind.removesuffix('rs')}.{'.'.join(inner)}"
    return f"{half}.{replace_prefix('.'.join(rest), {'conv_norm_out': 'norm_out'})}"


def openclip_key(name: str) -> str:
    """For the projections of q, k and v, which are one there (`part_of`): that one."""
    head, *rest = name.split(".")
    if head != "encoder":
        return replace_prefix(name, OPENCLIP)
    n, inner = rest[1], ".".join(rest[2:])
    if inner.startswith(("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")):
        return f"transformer.resblocks.{n}.attn.in_proj_{rest[-1]}"
    return f"transformer.resblocks.{n}.{replace_prefix(inner, OPENCLIP_LAYER)}"


def convert_tensor(name: str, theirs: str, tensor: Tensor) -> Tensor:
    """Of the tensor that is called so in a file, what ours of this name is: a third of q, k and v, a matrix the other
    way round, or a linear layer that was a convolution of one pixel."""
    if ".in_proj_" in theirs:
        return tensor.chunk(3)["qkv".index(name.split("_proj")[0][-1])]
    if theirs.endswith(".text_projection"):
        return tensor.T.contiguous()
    if "mid_block.attentions.0.to_" in name and tensor.ndim == 4:
        return tensor[:, :, 0, 0]
    return tensor


def openclip_tensor_names(layers: int, projects: bool) -> list[str]:
    """The tensors of a text encoder of so many layers, in transformers' names."""
    parts = [*OPENCLIP_LAYER, "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"]
    each = [f"encoder.layers.{n}.{part}" for n in range(layers) for part in parts] + ["final_layer_norm"]
    weights = [name for name in OPENCLIP if name.endswith("weight") and (projects or "projection" not in name)]
    both = [f"{name}.{what}" for name in each for what in ("weight", "bias")]
    return [*weights, "embeddings.token_embedding.weight", *both]
