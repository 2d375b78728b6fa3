"""From nothing to `weights/tiny`: python -m minip2p.tiny.train

Three things are trained or made, each taken up where it was left: the VAE; the pictures' latents, encoded once; UNet
and text encoder together. What step i draws depends on the seed and i alone. Where checkpoints are lost, `--warm
weights/tiny` goes on from weights that were written before. Every 500 steps, twelve pictures are written to look at.

On Linux, GLIBC_TUNABLES=glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=17179869184:glibc.malloc.hugetlb=1 in the
environment keeps the allocator from giving large buffers back at every step: a third less time a step.
"""

import argparse
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

from minip2p.attention.contract import Attend, explicit
from minip2p.checkpoints.load import load
from minip2p.config import SchedulerConfig, UNetConfig, VAEConfig
from minip2p.errors import run_guarded
from minip2p.io.files import read_json
from minip2p.io.tensors import write_tensors
from minip2p.io.viz import grid
from minip2p.pipeline import Pipeline
from minip2p.sched import DDIMScheduler
from minip2p.text.prompt import Prompt
from minip2p.tiny.export import export_model, load_tokenizer, make_text_encoder
from minip2p.tiny.grounding import MapKeeper, grounding_loss, regions, slot_tokens, target_attention
from minip2p.tiny.loop import Training, cooldown, generator, half_precision, inverse_root
from minip2p.tiny.scenes import Render, Scene, Sprites, caption_for, dataset, fetch_sprites, render
from minip2p.unet import UNet
from minip2p.vae import VAE
from minip2p.validation import is_integer

VAE_CONFIG = VAEConfig(
    block_out_channels=(24, 48, 96, 128),
    down_block_types=("DownEncoderBlock2D",) * 4,
    up_block_types=("UpDecoderBlock2D",) * 4,
    norm_num_groups=8,
)


UNET_CONFIG = UNetConfig(
    sample_size=16,
    block_out_channels=(64, 160, 256),
    down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    layers_per_block=1,
    cross_attention_dim=128,
    attention_head_dim=4,
)


SCHEDULER_CONFIG = SchedulerConfig(
    beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1, set_alpha_to_one=False
)


VAE_STEPS, VAE_CROPPED, VAE_FROZEN, VAE_BATCH = 8000, 2600, 6900, 16


BATCH, CHUNK, LATENTS = 64, 2048, 61440


GROUNDING = 0.03  # the weight of the grounding loss beside the denoising loss, which is about 0.07


PREVIEW_PROMPTS = (
    "a cat on the beach",
    "a tiger in the meadow",
    "a horse in the desert",
    "a duck on the sea",
    "a red car on the street",
    "a blue house in the snow",
    "a yellow balloon at night",
    "a green chair on the grass",
    "a sketch of a dog on the street",
    "a watercolor of a lion in the meadow",
    "a house in the meadow in the fog",
    "an elephant and a purple umbrella on the beach",
)


def pixels(renders: list[Render]) -> Tensor:
    """Renders as the VAE takes them: b 3 H W in [-1, 1], channels_last in memory."""
    return torch.from_numpy(np.stack([r.picture for r in renders])).permute(0, 3, 1, 2).float() / 127.5 - 1


def pictures(scenes: list[Scene], sprites: Sprites) -> Tensor:
    """The scenes rendered, b 3 H W in [-1, 1]."""
    return pixels([render(scene, sprites) for scene in scenes])


def vae_batch(seed: int, step: int, sprites: Sprites) -> Tensor:
    """Two random 64-px crops of each of eight new scenes; from step VAE_CROPPED on four whole pictures, since group
    norms and the attention in the middle see other statistics in a crop than in what they will be used with."""
    if step >= VAE_CROPPED:
        return pictures(list(dataset(seed, 4, start=step * VAE_BATCH)), sprites)
    whole = pictures(list(dataset(seed, VAE_BATCH // 2, start=step * VAE_BATCH)), sprites)
    size = whole.shape[-1] // 2
    corners = torch.randint(0, size + 1, (VAE_BATCH, 2), generator=generator(seed, step)).tolist()
    return torch.stack([whole[i // 2, :, y : y + size, x : x + size] for i, (y, x) in enumerate(corners)])


def gradients_l1(a: Tensor, b: Tensor, scales: int = 3) -> Tensor:
    """Mean absolute difference of the pictures' horizontal and vertical differences, summed over `scales` octaves:
    what keeps edges sharp where L1 alone would rather blur them."""
    total = a.new_zeros(())
    for _ in range(scales):
        difference = a - b
        total = total + difference.diff(dim=-1).abs().mean() + difference.diff(dim=-2).abs().mean()
        a, b = F.avg_pool2d(a, 2), F.avg_pool2d(b, 2)
    return total


def vae_loss(vae: VAE, x: Tensor, noise: torch.Generator, kl_weight: float = 1e-5) -> Tensor:
    """10 L2 + 2 L1 + 0.3 L1 of image gradients + β KL(q(z|x) ‖ N(0, 1)) (Kingma & Welling 2013, app. B), KL a value.

    The squares keep the colours: with L1 terms alone, edges came to outweigh them and things went grey.
    """
    with half_precision():
        mean, std = vae.encode(x)
        y = vae.decode(mean + std * torch.randn(mean.shape, generator=noise))
    kl = 0.5 * (mean**2 + std**2 - 1 - 2 * std.log()).mean()
    y = y.float()
    return 10 * F.mse_loss(y, x) + 2 * (x - y).abs().mean() + 0.3 * gradients_l1(x, y) + kl_weight * kl


def train_vae(work: Path, seed: int, sprites: Sprites, stop_at: float, warm: Path | None = None) -> tuple[VAE, int]:
    """The VAE with its averaged weights, and the steps it was trained. From step VAE_FROZEN on only the decoder is: the
    latents stay what they are, and so do those that have been kept."""
    torch.manual_seed(seed)
    vae = VAE(VAE_CONFIG).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    rate = lambda step: 5e-4 * cooldown(step, VAE_STEPS)  # noqa: E731
    training = Training(vae, work / "vae", rate=rate, steps=VAE_STEPS, ema=0.998, seed=seed)
    if warm:
        training.begin(load(warm).vae.state_dict(), trained_steps(warm)["vae"])

    def loss(step: int) -> Tensor:
        if step >= VAE_FROZEN and vae.encoder.conv_in.weight.requires_grad:
            for part in (vae.encoder, vae.quant_conv):
                training.freeze(part)
        x = vae_batch(seed, step, sprites).contiguous(memory_format=torch.channels_last)
        return vae_loss(vae, x, generator(seed, step, 1))

    training.run(loss, stop_at=stop_at)
    training.averaged()
    return vae.eval().requires_grad_(False), training.step


class Latents:
    """The training scenes' latents (means, unscaled) and the regions of what they show, made in chunks when they are
    first needed and kept on disk."""

    def __init__(self, folder: Path, vae: VAE, seed: int, sprites: Sprites):
        self.folder, self.vae, self.seed, self.sprites = folder, vae, seed, sprites
        self.chunks: list[dict[str, Tensor]] = []

    def size(self, step: int) -> int:
        """How many scenes there are to draw from at a training step: more as it goes on, so that it can begin early."""
        return min(LATENTS, CHUNK * (3 + step * BATCH // (12 * CHUNK)))

    @torch.no_grad()
    def chunk(self, number: int) -> dict[str, Tensor]:
        path = self.folder / f"{number:04d}.safetensors"
        if not path.exists():
            latents, masks = [], []
            for start in range(number * CHUNK, (number + 1) * CHUNK, 32):
                scenes = list(dataset(self.seed, 32, start=start))
                renders = [render(scene, self.sprites) for scene in scenes]
                with half_precision():
                    latents.append(self.vae.encode(pixels(renders))[0].half())
                masks += [torch.from_numpy(regions(*of)) for of in zip(scenes, renders, strict=True)]
            write_tensors({"latents": torch.cat(latents), "regions": torch.stack(masks)}, path)
        return load_file(path)

    def pick(self, name: str, index: Tensor) -> Tensor:
        while len(self.chunks) * CHUNK <= int(index.max()):
            self.chunks.append(self.chunk(len(self.chunks)))
        return torch.stack([self.chunks[i // CHUNK][name][i % CHUNK] for i in index.tolist()]).float()

    def __getitem__(self, index: Tensor) -> Tensor:
        return self.pick("latents", index)

    def regions(self, index: Tensor) -> Tensor:
        """How much of each cell each slot of a scene covers: b s H W in [0, 1]."""
        return self.pick("regions", index) / 255

    def scale(self) -> float:
        """One over the deviation of the latents: what brings them to about one, as the schedule expects."""
        return 1 / float(torch.cat([self[torch.arange(i, i + 256)] for i in range(0, CHUNK, 256)]).std())


class Denoiser(nn.Module):
    """UNet and text encoder, trained as one."""

    def __init__(self) -> None:
        super().__init__()
        self.unet = UNet(UNET_CONFIG)
        self.text = make_text_encoder(UNET_CONFIG.cross_attention_dim)
        # The last layer of a residual branch starts at zero: at first the UNet is close to the identity.
        for name, p in self.unet.named_parameters():
            if name.endswith(("conv2.weight", "proj_out.weight")) or name == "conv_out.weight":
                nn.init.zeros_(p)


def stratified_times(n: int, total: int, source: torch.Generator) -> Tensor:
    """n time steps, one from each n-th of the schedule: as uniform as independent draws, with less variance."""
    return ((torch.arange(n) + torch.rand(n, generator=source)) * (total / n)).long()


def denoising_loss(
    denoiser: Denoiser, sched: DDIMScheduler, x0: Tensor, ids: Tensor, source: torch.Generator, attend: Attend
) -> Tensor:
    """E w(t) ‖ε − ε_θ(x_t, t, words)‖² (Ho et al. 2020, eq. 14), weighted by w = 1 / √SNR, SNR = ᾱ / (1 − ᾱ) (Yu et
    al. 2023, arXiv 2310.08442). An error in ε at much noise is a large one in the picture, and it is there that the
    words decide."""
    t = stratified_times(len(x0), sched.config.num_train_timesteps, source)
    noise = torch.randn(x0.shape, generator=source)
    abar = sched.alphas_cumprod[t]
    snr = abar / (1 - abar)
    x = sched.add_noise(x0, noise, t).contiguous(memory_format=torch.channels_last)
    with half_precision():
        context = denoiser.text(input_ids=ids).last_hidden_state
        eps = denoiser.unet(x, t, context, attend)
    error = (eps.float() - noise).square().mean(dim=(1, 2, 3))
    return (error / snr.sqrt()).mean()


def draw_captions(seed: int, step: int, indices: Tensor, drop: float = 0.1) -> tuple[list[Scene], list[str]]:
    """The scenes and their captions, worded anew each time; a tenth are empty, for classifier-free guidance."""
    rng, scenes, captions = np.random.default_rng((seed, step, 2)), [], []
    for i in indices.tolist():
        scene = next(dataset(seed, 1, start=i))
        caption = caption_for(rng, scene.things, scene.background, scene.style, scene.attribute, scene.strength)
        scenes.append(scene)
        captions.append("" if rng.random() < drop else caption)
    return scenes, captions


def train_denoiser(
    options: argparse.Namespace, latents: Latents, write: Callable[[Path, Denoiser, int], None], stop_at: float
) -> None:
    """UNet and text encoder. `write(folder, denoiser, steps)` gets their averaged weights, now and then and at last."""
    seed, work = options.seed, options.work / "unet"
    torch.manual_seed(seed)
    denoiser = Denoiser()
    denoiser.unet.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    rate = lambda step: 8e-4 * inverse_root(step)  # noqa: E731
    training = Training(denoiser, work, rate=rate, steps=options.steps, ema=0.9999, seed=seed)
    if options.warm:
        model = load(options.warm)
        landed = {"unet": model.unet.state_dict(), "text": model.text.encoders["text_encoder"].state_dict()}
        weights = {f"{part}.{name}": tensor for part, tensors in landed.items() for name, tensor in tensors.items()}
        training.begin(weights, trained_steps(options.warm)["unet"])
    sched, tokenize, scale = DDIMScheduler(SCHEDULER_CONFIG), load_tokenizer(), latents.scale()

    def loss(step: int) -> Tensor:
        source = generator(seed, step, 3)
        indices = torch.randint(0, latents.size(step), (BATCH,), generator=source)
        scenes, captions = draw_captions(seed, step, indices)
        prompts = [Prompt.tokenize(caption, tokenize) for caption in captions]
        ids, kept = torch.tensor([prompt.ids for prompt in prompts]), MapKeeper()
        denoising = denoising_loss(denoiser, sched, scale * latents[indices], ids, source, explicit(kept))
        places = [slot_tokens(scene, prompt) for scene, prompt in zip(scenes, prompts, strict=True)]
        return denoising + GROUNDING * grounding_loss(
            kept.maps, *target_attention(places, latents.regions(indices), ids.shape[1])
        )

    def show() -> None:
        averaged = Denoiser()
        averaged.load_state_dict(training.average, strict=False)  # what is no parameter is the same in all
        write(options.work / "preview", averaged, training.step)
        sheet(load(options.work / "preview")).save(work / f"samples-{training.step:06d}.png")

    training.run(loss, show=show, stop_at=stop_at)
    training.averaged()
    write(options.out, denoiser, training.step)


def sheet(model: Pipeline) -> Image.Image:
    """Pictures of SHOWN, always from the same noise, to be looked at while the training goes on."""
    return grid(
        [(model.generate(prompt, seed=i, steps=25).image, prompt) for i, prompt in enumerate(PREVIEW_PROMPTS)], 4, 128
    )


def trained_steps(folder: Path) -> dict[str, int]:
    """How many steps the weights in a folder were trained: part -> steps."""
    own = folder / "minip2p.json"
    steps = read_json(own).get("_trained")
    if not isinstance(steps, dict) or not all(is_integer(steps.get(part)) for part in ("vae", "unet")):
        raise ValueError(f"{own}: does not say how many steps the weights were trained")
    return steps


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m minip2p.tiny.train", description=__doc__.split("\n")[0])
    parser.add_argument("--work", type=Path, default=Path(".train"), help="checkpoints and caches (default .train)")
    parser.add_argument("--out", type=Path, default=Path("weights/tiny"), help="where the weights are written")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=40_000, help=f"of the UNet, {BATCH} pictures each")
    parser.add_argument(
        "--minutes", type=float, default=math.inf, help="after so long, write what there is (once the VAE is done)"
    )
    parser.add_argument(
        "--warm",
        type=Path,
        metavar="FOLDER",
        help="begin with the weights in this folder, unless --work has checkpoints",
    )
    options = parser.parse_args()
    return run_guarded(lambda: train(options))


def train(options: argparse.Namespace) -> None:
    """VAE, latents, UNet and text encoder, as far as the time reaches."""
    stop_at = time.time() + 60 * options.minutes
    sprites = Sprites.load(fetch_sprites(options.work / "sprites"))
    vae, steps = train_vae(options.work, options.seed, sprites, stop_at, options.warm)
    if steps < VAE_STEPS:
        print("the VAE's training is not complete yet: run the same command again to go on")
        return
    latents = Latents(options.work / f"latents-{options.seed}-{VAE_FROZEN}", vae, options.seed, sprites)
    scale = latents.scale()

    def write(folder: Path, denoiser: Denoiser, unet_steps: int) -> None:
        done = {"vae": steps, "unet": unet_steps}
        export_model(folder, vae, denoiser.unet, denoiser.text, SCHEDULER_CONFIG, scaling_factor=scale, trained=done)

    train_denoiser(options, latents, write, stop_at)


if __name__ == "__main__":
    sys.exit(main())
