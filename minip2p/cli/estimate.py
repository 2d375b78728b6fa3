"""How long a command will run and how much memory it will take, said before it starts where that matters.

The work is counted from the shapes of the weights, and the machine's speed is measured with a convolution of the
model's width and dtype. The time is right within a factor of two while the load of the machine stays what it is at
the start.
"""

import os
import warnings
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from time import perf_counter

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open

from minip2p.checkpoints.components import Components
from minip2p.cli.options import APPROXIMATIONS, run_options, seeds_to_run
from minip2p.errors import Notice
from minip2p.pipeline import Pipeline
from minip2p.sampling.batches import MAX_BATCH
from minip2p.sampling.conditioning import Conditioning
from minip2p.sampling.guidance import unet_rows
from minip2p.unet import UNet
from minip2p.vae.model import TILE

TOKENS = 77  # of a prompt
LONG = 60.0  # seconds from which a run is announced
SMALL = 1e12  # FLOP that no machine takes a minute for: the speed is not measured
PROBE = 0.5  # seconds for which the speed is measured
EFFICIENCY = 0.6  # the speed of a network, as a share of the speed of a convolution of its width
DECODER_TENSORS = 4  # how many of the decoder's largest tensors are alive at once
NULL_TEXT_ROWS = 30  # of a step of null-text inversion: ten updates, each a pass forward and a pass back
REFINE_PICTURES = 3  # decoded pictures that an update of --polish takes the time of: a pass forward and a pass back


def announce_command(pipe: Pipeline, args: Namespace) -> None:
    """Warns, by a Notice, of a command that will run for minutes or take more memory than there is."""
    if (source := getattr(args, "source", None)) and (shape := latents_shape(Path(source))):
        steps, latent_size = shape[0] - 1, (shape[2], shape[3])
    else:
        steps = args.steps or pipe.scheduler.default_steps
        latent_size = pipe.components.latent_size(run_options(args).get("size"))
    guidance = pipe.default_guidance if args.guidance_scale is None else args.guidance_scale
    row = unet_rows(1, guidance, is_read=pipe.unet.reads_guidance)
    options = run_options(args)
    conditioning = Conditioning(**{name: options[name] for name in APPROXIMATIONS if name in options})
    scales = [conditioning.executed_scale(i, steps, guidance) for i in range(steps)]
    rows = sum(unet_rows(1, scale, is_read=pipe.unet.reads_guidance) for scale in scales)
    pictures, batch = 1, row
    if args.command == "edit":
        targets = len(args.targets)
        pictures = 1 + targets * (1 if args.no_compare else 2)
        rows, batch = rows * pictures, row * min(targets, MAX_BATCH)
    elif args.command == "instruct":
        rows, batch = 3 * steps, 3
    elif args.command == "maps":
        rows += steps
    if args.command == "invert" or (args.command in ("edit", "maps") and args.prompt is not None):
        rows += steps * inversion_rows(args.method, row)
        pictures += 1 + REFINE_PICTURES * (args.vae_refine_steps or 0)
    seeds = len(seeds_to_run(args)) if hasattr(args, "count") else 1
    announce(pipe.components, rows * seeds, latent_size, pictures=pictures * seeds, batch=batch)


def inversion_rows(method: str | None, row: int) -> int:
    """The rows of the UNet in a step of an inversion. row: those of a step of a run."""
    return {"null-text": NULL_TEXT_ROWS, "virtual": 0}.get(method or "", row)


def announce(
    components: Components,
    rows: int,
    latent_size: tuple[int, int],
    *,
    pictures: int,
    batch: int,
    advice: str = "fewer --steps or a smaller --size take less",
) -> None:
    """Warns, by a Notice, of work that takes minutes or more memory than there is.

    rows: of the UNet. latent_size: rows and columns. pictures: that the VAE decodes. batch: rows that run at once.
    advice: what takes less time.
    """
    if not rows:
        return
    memory = memory_needed(components, latent_size, batch)
    total = memory_of_machine(components.device)
    if memory > total:
        warnings.warn(
            f"this needs about {memory / 1e9:.0f} GB of memory, and there are {total / 1e9:.0f} GB: smaller "
            "pictures and --dtype bfloat16 need less",
            Notice,
            stacklevel=2,
        )
    flops = rows * unet_flops(components, latent_size) + pictures * decoder_flops(components, latent_size)
    if flops < SMALL or components.device.type != "cpu":
        return
    seconds = flops / (EFFICIENCY * measure_speed(components))
    if seconds >= LONG:
        warnings.warn(
            f"this will take about {format_time(seconds)} on this machine: {rows:,} rows of the UNet at "
            f"{seconds / rows:.{0 if seconds > 10 * rows else 1}f} s; {advice}",
            Notice,
            stacklevel=2,
        )


def format_time(seconds: float) -> str:
    """A duration in minutes or hours."""
    return (
        f"{seconds / 60:.0f} minutes" if seconds < 5400 else f"{seconds / 3600:.{1 if seconds < 36000 else 0}f} hours"
    )


def unet_flops(components: Components, latent_size: tuple[int, int]) -> float:
    """The floating-point operations of a row of the UNet: 2 for each weight and pixel that it is applied to, and 4 for
    each query, key and channel of attention."""
    unet, pixels = components.unet, latent_size[0] * latent_size[1]
    flops = sum(2 * weight.numel() * cells for weight, cells in weights_with_cells(unet, pixels))
    for attention in unet.attentions:
        queries = pixels // attention.site.stride**2
        keys = TOKENS if attention.site.cross else queries
        flops += 4 * queries * keys * attention.heads * attention.width
    return float(flops)


def weights_with_cells(unet: UNet, pixels: int) -> Iterator[tuple[torch.Tensor, float]]:
    """Each matrix or kernel of a UNet, and to how many pixels it is applied."""
    levels = len(unet.config.block_out_channels)
    for name, weight in unet.named_parameters():
        place, _, rest = name.partition(".")
        if weight.ndim < 2:
            continue
        level = {"down_blocks": 0, "mid_block": levels - 1, "up_blocks": levels - 1}.get(place, 0)
        if place in ("down_blocks", "up_blocks"):
            block = int(rest.partition(".")[0])
            level = block if place == "down_blocks" else levels - 1 - block
            level += ("downsamplers" in rest) - ("upsamplers" in rest)
        if "time_emb" in name or place == "add_embedding":
            cells: float = 1
        elif "attn2.to_k" in name or "attn2.to_v" in name:
            cells = TOKENS
        else:
            cells = pixels / 4**level
        yield weight, cells


def decoder_flops(components: Components, latent_size: tuple[int, int]) -> float:
    """The floating-point operations of decoding a picture."""
    vae, pixels = components.vae, latent_size[0] * latent_size[1]
    levels, flops = len(vae.config.block_out_channels), 4.0 * pixels**2 * vae.config.block_out_channels[-1]
    for name, weight in vae.decoder.named_parameters():
        place, _, rest = name.partition(".")
        level = 0
        if place == "up_blocks":
            level = int(rest.partition(".")[0]) + ("upsamplers" in rest)
        elif place == "conv_out":
            level = levels - 1
        if weight.ndim > 1:
            flops += 2 * weight.numel() * pixels * 4**level
    return flops


def memory_needed(components: Components, latent_size: tuple[int, int], batch: int) -> float:
    """Bytes of the weights and of the largest activations: those of the UNet's first level or those of the decoder."""
    weights = sum(p.nbytes for network in components.networks.values() for p in network.parameters())
    unet, vae, pixels = components.unet.config, components.vae, latent_size[0] * latent_size[1]
    # The feed-forward layer's hidden activations, 8 and 4 times as wide, the skip connections and the kernels' scratch.
    unet_bytes = 32 * batch * pixels * unet.block_out_channels[0] * components.dtype.itemsize
    widths = vae.config.block_out_channels
    widest = max(widths[0], *widths[1:2])  # the second level's channels are brought to the picture's size
    decoded = min(pixels * vae.stride**2, TILE**2)  # a larger picture is decoded in tiles
    decoder_bytes = DECODER_TENSORS * decoded * widest * vae.dtype.itemsize
    return weights + max(unet_bytes, decoder_bytes)


def memory_of_machine(device: torch.device) -> float:
    """Bytes of memory of a device, or of the container; infinite where that is unknown."""
    if device.type == "cuda":
        return float(torch.cuda.get_device_properties(device).total_memory)
    try:
        total = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (AttributeError, ValueError, OSError):  # not on every system
        return float("inf")
    try:
        return min(total, float(Path("/sys/fs/cgroup/memory.max").read_text()))
    except (OSError, ValueError):  # no container, or no limit
        return total


def latents_shape(file: Path) -> list[int] | None:
    """The shape of the latents in the file of a run, t+1 c h w; None where there are none."""
    try:
        with safe_open(file, "np") as tensors:
            return list(tensors.get_slice("latents").get_shape())
    except (SafetensorError, OSError):
        return None


def measure_speed(components: Components) -> float:
    """The FLOP per second of a 3 x 3 convolution of the UNet's width and dtype.

    It is the mean over PROBE seconds, and so includes the share that other programs take of a busy machine.
    """
    channels, side = components.unet.config.block_out_channels[0], 32
    x = torch.ones(2, channels, side, side, dtype=components.dtype)
    kernel = torch.ones(channels, channels, 3, 3, dtype=components.dtype)
    with torch.inference_mode():
        F.conv2d(x, kernel, padding=1)  # the first call prepares the kernel
        calls, start = 0, perf_counter()
        while perf_counter() < start + PROBE:
            F.conv2d(x, kernel, padding=1)
            calls += 1
    return 2 * kernel.numel() * 2 * side**2 * calls / (perf_counter() - start)
