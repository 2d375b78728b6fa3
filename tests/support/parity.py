"""Helpers of the parity tests: two modules with the same random weights, and the distance between their outputs.

The configurations are those of the published models' config.json files.
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
# The UNet of each published model whose tensor names and shapes are in tests/data/official.
OFFICIAL_UNETS = {
    "sd15": SD15_UNET,
    "sd21": SD21_UNET,
    "sdxl": SDXL_UNET,
    "instruct": SD15_UNET | {"in_channels": 8},
    "inpaint": SD15_UNET | {"in_channels": 9},
}
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
    """Builds a module on the meta device, where it takes no memory."""
    with torch.device("meta"):
        return build(*args, **kwargs)


def share_weights(*modules, seed=0):
    """Gives modules that were built on the meta device the same random weights, including norms and biases."""
    generator, weights = np.random.default_rng(seed), {}
    for name, p in modules[0].state_dict().items():
        w = torch.from_numpy(generator.random(p.shape, dtype=np.float32)).mul_(2).sub_(1)
        if p.ndim > 1:
            weights[name] = w.mul_((3 / p[0].numel()) ** 0.5)  # variance 1 / fan-in: activations keep their scale
        else:
            weights[name] = w.mul_(0.2).add_(1.0 if "norm" in name and name.endswith("weight") else 0.0)
    for module in modules:
        module.load_state_dict(weights, strict=True, assign=True)
        module.eval().requires_grad_(False)


def norms(module):
    """The normalization layers of a module with their settings, since a wrong ε hardly shows in the outputs."""
    kinds = torch.nn.GroupNorm, torch.nn.LayerNorm
    return {
        name: (type(m), m.eps, getattr(m, "num_groups", None))
        for name, m in module.named_modules()
        if isinstance(m, kinds)
    }


def check(what, actual, expected, tolerance):
    """Asserts that the largest difference is within `tolerance` standard deviations of what is expected; prints it."""
    assert actual.shape == expected.shape
    error = ((actual - expected).abs().max() / expected.std()).item()
    message = f"{what}: at most {error:.1e} standard deviations apart, allowed {tolerance:.0e}"
    print(message)
    assert error <= tolerance, message
