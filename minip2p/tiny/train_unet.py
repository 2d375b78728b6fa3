"""Trains the UNet of the tiny model together with its text encoder.

Axes: b batch, c latent channels, h w height and width of a latent, j tokens of a caption.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from minip2p.attention.contract import Attend, explicit
from minip2p.config import SchedulerConfig, UNetConfig
from minip2p.io.viz import grid
from minip2p.pipeline import Pipeline, load
from minip2p.sched import DDIMScheduler
from minip2p.text.prompt import Prompt
from minip2p.tiny.export import load_tokenizer, make_text_encoder, trained_steps
from minip2p.tiny.grounding import MapKeeper, attention_targets, grounding_loss, slot_tokens
from minip2p.tiny.latents import LatentCache, scenes_available
from minip2p.tiny.loop import Training, half_precision, inverse_root, seeded_generator
from minip2p.tiny.scenes import Scene, caption_for, dataset
from minip2p.unet import UNet

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
UNET_BATCH = 64
GROUNDING_WEIGHT = 0.03  # of the grounding loss; the denoising loss is about 0.07
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


@dataclass(frozen=True)
class UNetRun:
    """The options of a training run.

    work: the folder for checkpoints and previews. out: the folder for the weights. warm_start: a folder of weights to
    start from. stop_at: the time (time.time()) after which the run stops.
    """

    work: Path
    out: Path
    seed: int
    steps: int
    warm_start: Path | None
    stop_at: float


class Denoiser(nn.Module):
    """The UNet and the text encoder, trained as one module."""

    def __init__(self) -> None:
        super().__init__()
        self.unet = UNet(UNET_CONFIG)
        self.text = make_text_encoder(UNET_CONFIG.cross_attention_dim)
        # The last layer of each residual branch starts at zero, so that the UNet starts close to the identity.
        for name, p in self.unet.named_parameters():
            if name.endswith(("conv2.weight", "proj_out.weight")) or name == "conv_out.weight":
                nn.init.zeros_(p)


def stratified_timesteps(n: int, total: int, generator: torch.Generator) -> Tensor:
    """n timesteps, one from each n-th of the schedule: as uniform as independent draws, with less variance."""
    return ((torch.arange(n) + torch.rand(n, generator=generator)) * (total / n)).long()


def denoising_loss(
    denoiser: Denoiser,
    scheduler: DDIMScheduler,
    x0: Tensor,
    token_ids: Tensor,
    generator: torch.Generator,
    attend: Attend,
) -> Tensor:
    """E w(t) ‖ε − ε_θ(x_t, t, caption)‖² (Ho et al. 2020, eq. 14), for latents x0 b c h w and token ids b j.

    w = 1 / √SNR with SNR = ᾱ / (1 − ᾱ) (Yu et al. 2023, arXiv 2310.08442). At high noise an error in ε is a large error
    in the picture, and it is there that the caption decides.
    """
    t = stratified_timesteps(len(x0), scheduler.config.num_train_timesteps, generator)
    noise = torch.randn(x0.shape, generator=generator)
    alpha_cumprod = scheduler.alphas_cumprod[t]
    snr = alpha_cumprod / (1 - alpha_cumprod)
    x = scheduler.add_noise(x0, noise, t).contiguous(memory_format=torch.channels_last)
    with half_precision():
        context = denoiser.text(input_ids=token_ids).last_hidden_state
        eps = denoiser.unet(x, t, context, attend)
    error = (eps.float() - noise).square().mean(dim=(1, 2, 3))
    return (error / snr.sqrt()).mean()


def draw_captions(seed: int, step: int, indices: Tensor, drop: float = 0.1) -> tuple[list[Scene], list[str]]:
    """The scenes of these numbers, and a new random caption for each.

    A share `drop` of the captions is empty, for classifier-free guidance (Ho & Salimans 2022).
    """
    rng, scenes, captions = np.random.default_rng((seed, step, 2)), [], []
    for i in indices.tolist():
        scene = next(dataset(seed, 1, start=i))
        caption = caption_for(rng, scene.things, scene.background, scene.style, scene.attribute, scene.strength)
        scenes.append(scene)
        captions.append("" if rng.random() < drop else caption)
    return scenes, captions


def denoiser_weights(folder: Path) -> dict[str, Tensor]:
    """The weights of a saved model, by the parameter names of `Denoiser`."""
    model = load(folder)
    modules = {"unet": model.unet, "text": model.text.encoders["text_encoder"]}
    return {
        f"{part}.{name}": tensor for part, module in modules.items() for name, tensor in module.state_dict().items()
    }


def train_unet(run: UNetRun, latents: LatentCache, write: Callable[[Path, Denoiser, int], None]) -> None:
    """Trains the UNet and the text encoder. Resumes from `run.work`.

    write(folder, denoiser, steps) is called with the averaged weights: for a preview every 500 steps, and at the end.
    """
    torch.manual_seed(run.seed)
    denoiser = Denoiser()
    denoiser.unet.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def learning_rate(step: int) -> float:
        return 8e-4 * inverse_root(step)

    training = Training(
        denoiser, run.work / "unet", learning_rate=learning_rate, steps=run.steps, ema_decay=0.9999, seed=run.seed
    )
    if run.warm_start:
        training.warm_start(denoiser_weights(run.warm_start), trained_steps(run.warm_start)["unet"])
    scheduler, tokenizer, scaling_factor = DDIMScheduler(SCHEDULER_CONFIG), load_tokenizer(), latents.scaling_factor()

    def loss(step: int) -> Tensor:
        generator = seeded_generator(run.seed, step, 3)
        indices = torch.randint(0, scenes_available(step, UNET_BATCH), (UNET_BATCH,), generator=generator)
        scenes, captions = draw_captions(run.seed, step, indices)
        prompts = [Prompt.tokenize(caption, tokenizer) for caption in captions]
        token_ids = torch.tensor([prompt.ids for prompt in prompts])
        keeper = MapKeeper()
        x0 = scaling_factor * latents[indices]
        denoising = denoising_loss(denoiser, scheduler, x0, token_ids, generator, explicit(keeper))
        tokens = [slot_tokens(scene, prompt) for scene, prompt in zip(scenes, prompts, strict=True)]
        targets, has_target = attention_targets(tokens, latents.regions(indices), token_ids.shape[1])
        return denoising + GROUNDING_WEIGHT * grounding_loss(keeper.maps, targets, has_target)

    def preview() -> None:
        averaged = Denoiser()
        averaged.load_state_dict(training.average, strict=False)  # buffers, which have no average, never change
        write(run.work / "preview", averaged, training.step)
        preview_sheet(load(run.work / "preview")).save(training.work / f"samples-{training.step:06d}.png")

    training.run(loss, preview=preview, stop_at=run.stop_at)
    training.load_average()
    write(run.out, denoiser, training.step)


def preview_sheet(model: Pipeline) -> Image.Image:
    """Pictures of PREVIEW_PROMPTS, always from the same noise, to follow the training by eye."""
    pictures = [(model.generate(prompt, seed=i, steps=25).image, prompt) for i, prompt in enumerate(PREVIEW_PROMPTS)]
    return grid(pictures, 4, 128)
