"""What the parity tests share: random weights that two modules have in common, and how far apart their outputs are.

The configurations are those of the published models' own config.json files.
"""

import numpy as np
import torch

SD15_UNET = dict(
    act_fn="silu",
    attention_head_dim=8,
    block_out_channels=[320, 640, 1280, 1280],
    center_input_sample=False,
    cross_attention_dim=768,
    down_block_types=["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    downsample_padding=1,
    flip_sin_to_cos=True,
    freq_shift=0,
    in_channels=4,
    layers_per_block=2,
    mid_block_scale_factor=1,
    norm_eps=1e-5,
    norm_num_groups=32,
    out_channels=4,
    sample_size=64,
    up_block_types=["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
)
SD21_UNET = SD15_UNET | dict(
    attention_head_dim=[5, 10, 20, 20],
    cross_attention_dim=1024,
    dual_cross_attention=False,
    num_class_embeds=None,
    only_cross_attention=False,
    sample_size=96,
    upcast_attention=True,
    use_linear_projection=True,
)
SDXL_UNET = SD21_UNET | dict(
    addition_embed_type="text_time",
    addition_embed_type_num_heads=64,
    addition_time_embed_dim=256,
    attention_head_dim=[5, 10, 20],
    block_out_channels=[320, 640, 1280],
    cross_attention_dim=2048,
    down_block_types=["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    mid_block_only_cross_attention=None,
    mid_block_type="UNetMidBlock2DCrossAttn",
    projection_class_embeddings_input_dim=2816,
    sample_size=128,
    transformer_layers_per_block=[1, 2, 10],
    upcast_attention=None,
    up_block_types=["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
)
SD15_VAE = dict(
    act_fn="silu",
    block_out_channels=[128, 256, 512, 512],
    down_block_types=["DownEncoderBlock2D"] * 4,
    in_channels=3,
    latent_channels=4,
    layers_per_block=2,
    norm_num_groups=32,
    out_channels=3,
    sample_size=512,
    up_block_types=["UpDecoderBlock2D"] * 4,
)


def on_meta(build, *args, **kwargs):
    """Builds a module that takes no memory."""
    with torch.device("meta"):
        return build(*args, **kwargs)


def share_weights(*modules, seed=0):
    """Gives modules, built on the meta device, one and the same set of random weights, norms and biases included."""
    draw, weights = np.random.default_rng(seed), {}
    for name, p in modules[0].state_dict().items():
        w = torch.from_numpy(draw.random(p.shape, dtype=np.float32)).mul_(2).sub_(1)
        if p.ndim > 1:
            weights[name] = w.mul_((3 / p[0].numel()) ** 0.5)  # of variance 1 / fan-in, so that no signal dies or grows
        else:
            weights[name] = w.mul_(0.2).add_(1.0 if "norm" in name and name.endswith("weight") else 0.0)
    for module in modules:
        module.load_state_dict(weights, strict=True, assign=True)
        module.eval().requires_grad_(False)


def norms(module):
    """Where a module normalizes, and how: an ε that is wrong by ten times is too small to see in an output."""
    kinds = torch.nn.GroupNorm, torch.nn.LayerNorm
    return {
        name: (type(m), m.eps, getattr(m, "num_groups", None))
        for name, m in module.named_modules()
        if isinstance(m, kinds)
    }


def check(what, ours, theirs, within):
    """Asserts that ours lies within so many deviations of theirs, everywhere, and prints how far it does."""
    assert ours.shape == theirs.shape
    error = ((ours - theirs).abs().max() / theirs.std()).item()
    says = f"{what}: at most {error:.1e} of the deviation apart, allowed {within:.0e}"
    print(says)
    assert error <= within, says
