"""Trains the UNet of the tiny model together with its text encoder.

Axes: b batch, c latent channels, h w height and width of a latent, j tokens of a caption.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn

from minip2p.attention.contract import Attend, Site, explicit
from minip2p.config import SchedulerConfig, UNetConfig
from minip2p.io.viz import grid
from minip2p.pipeline import Pipeline, load
from minip2p.sched import DDIMScheduler
from minip2p.tiny.batches import UNET_BATCH, BatchSource
from minip2p.tiny.export import load_tokenizer, make_text_encoder, trained_steps
from minip2p.tiny.grounding import MapKeeper, attention_targets, fused_self_attention, grounding_loss
from minip2p.tiny.loop import Training, cooldown, half_precision, inverse_root, seeded_generator
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
LEARNING_RATE, EMA_DECAY = 8e-4, 0.9999  # for batches of UNET_BATCH; see `Training` for larger ones
DECAY = 0.2  # the share of a run at whose end the learning rate falls to zero, if it does
GROUNDING_WEIGHT = 0.03  # of the grounding loss; the denoising loss is about 0.07
ENOUGH = 0.9  # of the best throughput: a smaller batch that reaches it is preferred, since it takes more steps
COMPILE_SECONDS = 600.0  # how long a run must be for torch.compile to be tried, which takes a minute or two …
COMPILED_AHEAD_SECONDS = 120.0  # … and how long if a process has compiled it before
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
    start from. stop_at: the time (time.time()) after which the run stops. batches: the numbers of pictures in a step
    that are tried, multiples of UNET_BATCH; the fastest is taken. decay: whether the learning rate falls to zero over
    the last DECAY of the run. compiled_ahead: whether `compile_ahead` has run, so that torch.compile is quick.
    """

    work: Path
    out: Path
    seed: int
    steps: int
    warm_start: Path | None
    stop_at: float
    device: torch.device = torch.device("cpu")  # noqa: RUF009, it is immutable
    batches: tuple[int, ...] = (UNET_BATCH,)
    decay: bool = False
    compiled_ahead: bool = False


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

    def forward(self, x: Tensor, t: Tensor, token_ids: Tensor) -> tuple[Tensor, dict[Site, Tensor]]:
        """The predicted noise of latents x b c h w at timesteps t b, and the cross-attention maps, site -> b h i j."""
        return predict_with_maps(self.unet, x, t, self.text(input_ids=token_ids).last_hidden_state)


def predict_with_maps(unet: UNet, x: Tensor, t: Tensor, context: Tensor) -> tuple[Tensor, dict[Site, Tensor]]:
    """The predicted noise of latents x b c h w at timesteps t b, and the cross-attention maps, site -> b h i j."""
    keeper = MapKeeper()
    attend: Attend = explicit(keeper)
    if x.is_cuda:  # on a CPU the fused kernel is slower at these sizes
        attend = fused_self_attention(attend)
    return unet(x, t, context, attend), keeper.maps


def stratified_timesteps(n: int, total: int, generator: torch.Generator) -> Tensor:
    """n timesteps, one from each n-th of the schedule: as uniform as independent draws, with less variance."""
    device = generator.device
    offsets = torch.rand(n, generator=generator, device=device)
    t = ((torch.arange(n, device=device) + offsets) * (total / n)).long()
    return t.clamp(max=total - 1)  # rounding may raise the last to the end of its part


def denoising_loss(
    denoiser: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, dict[Site, Tensor]]],
    alphas_cumprod: Tensor,
    x0: Tensor,
    token_ids: Tensor,
    generator: torch.Generator,
) -> tuple[Tensor, dict[Site, Tensor]]:
    """E w(t) ‖ε − ε_θ(x_t, t, caption)‖² (Ho et al. 2020, eq. 14), for latents x0 b c h w and token ids b j.

    w = 1 / √SNR with SNR = ᾱ / (1 − ᾱ) (Yu et al. 2023, arXiv 2310.08442). At high noise an error in ε is a large error
    in the picture, and it is there that the caption decides. All tensors and the generator are on one device.
    Returns the cross-attention maps as well.
    """
    t = stratified_timesteps(len(x0), len(alphas_cumprod), generator)
    noise = torch.randn(x0.shape, generator=generator, device=x0.device)
    alpha_cumprod = alphas_cumprod[t]
    snr = alpha_cumprod / (1 - alpha_cumprod)
    signal = alpha_cumprod[:, None, None, None]
    x = (signal.sqrt() * x0 + (1 - signal).sqrt() * noise).contiguous(memory_format=torch.channels_last)
    with half_precision(x0.device):
        eps, maps = denoiser(x, t, token_ids)
    error = (eps.float() - noise).square().mean(dim=(1, 2, 3))
    return (error / snr.sqrt()).mean(), maps


def denoiser_weights(folder: Path) -> dict[str, Tensor]:
    """The weights of a saved model, by the parameter names of `Denoiser`."""
    model = load(folder)
    modules = {"unet": model.unet, "text": model.text.encoders["text_encoder"]}
    return {
        f"{part}.{name}": tensor for part, module in modules.items() for name, tensor in module.state_dict().items()
    }


def smallest_fast_batch(sizes: Sequence[int], seconds: Callable[[int], float]) -> int:
    """The smallest of the batch sizes, in ascending order, that takes at least ENOUGH of the most pictures a second.

    seconds(size): how long a step takes. It may raise torch.cuda.OutOfMemoryError; larger batches are not tried then.
    """
    rates: dict[int, float] = {}
    for size in sizes:
        try:
            rates[size] = size / seconds(size)
        except torch.cuda.OutOfMemoryError:
            torch.cuda.empty_cache()
            break
        print(f"batches of {size}: {rates[size]:.0f} pictures a second", flush=True)
    if not rates:
        raise ValueError(f"a batch of {sizes[0]} pictures does not fit into the GPU's memory; set a smaller --batch")
    return next(size for size, rate in rates.items() if rate >= ENOUGH * max(rates.values()))


def time_step(step: Callable[[], Tensor], device: torch.device, repeats: int = 3) -> float:
    """How many seconds a step takes with its gradients, after one that is not counted."""
    for repeat in range(repeats + 1):
        if repeat == 1:
            begin = time.time()
        step().backward()
        if device.type == "cuda":
            torch.cuda.synchronize()
    return (time.time() - begin) / repeats


def train_unet(run: UNetRun, source: BatchSource, write: Callable[[Path, Denoiser, int], None]) -> None:
    """Trains the UNet and the text encoder. Resumes from `run.work`.

    write(folder, denoiser, steps) is called with the averaged weights: for a preview at the start and every 500 steps
    (on a GPU every 90 seconds), and at the end.
    At the end of a run with a decay of the learning rate, the better of the average and the weights themselves is
    written, by the loss on scenes that are not trained on.
    """
    begin = time.time()
    torch.manual_seed(run.seed)
    denoiser = Denoiser()
    denoiser.unet.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    denoiser.to(run.device)
    alphas_cumprod = DDIMScheduler(SCHEDULER_CONFIG).alphas_cumprod.to(run.device)
    scaling_factor = source.scaling_factor()

    def learning_rate(step: int) -> float:
        rate = LEARNING_RATE * inverse_root(step)
        if run.decay:
            rate *= cooldown(time.time() - begin, run.stop_at - begin, DECAY) * cooldown(step, run.steps, DECAY)
        return rate

    training = Training(
        denoiser, run.work / "unet", learning_rate=learning_rate, steps=run.steps, ema_decay=EMA_DECAY, seed=run.seed
    )
    if run.warm_start:
        training.warm_start(denoiser_weights(run.warm_start), trained_steps(run.warm_start)["unet"])
    training.resume()
    with training.averaged():  # so that there are weights from the start, whatever happens
        write(run.work / "preview", denoiser, training.step)
    predict: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, dict[Site, Tensor]]] = denoiser

    def batch_loss(step: int, size: int) -> Tensor:
        batch = source.batch(step, UNET_BATCH * (step - training.start), size)
        generator = seeded_generator(run.seed, step, 4, device=run.device)
        x0 = scaling_factor * batch.latents
        denoising, maps = denoising_loss(predict, alphas_cumprod, x0, batch.token_ids, generator)
        targets = attention_targets(batch.slots, batch.regions)
        return denoising + GROUNDING_WEIGHT * grounding_loss(maps, targets)

    def seconds(size: int) -> float:
        return time_step(lambda: batch_loss(training.step, size), run.device)

    size = run.batches[0]
    if len(run.batches) > 1:
        size = smallest_fast_batch(run.batches, seconds)
    training.stride = max(1, size // UNET_BATCH)
    enough = COMPILED_AHEAD_SECONDS if run.compiled_ahead else COMPILE_SECONDS
    if run.device.type == "cuda" and run.stop_at - time.time() >= enough:
        eager = seconds(size)
        predict, start = torch.compile(denoiser, dynamic=False), time.time()
        try:
            compiled = seconds(size)
        except Exception as error:  # there may be no compiler, for instance
            print(f"torch.compile failed: {error}", flush=True)
            compiled = math.inf
        took = time.time() - start
        print(f"torch.compile: {compiled:.3f} s a step, {eager:.3f} s without; it took {took:.0f} s", flush=True)
        if compiled >= eager:
            predict = denoiser

    @torch.no_grad()
    def validation_loss() -> float:
        batch = source.validation()
        generator = seeded_generator(run.seed, 6, device=run.device)
        return float(
            denoising_loss(denoiser, alphas_cumprod, scaling_factor * batch.latents, batch.token_ids, generator)[0]
        )

    def preview() -> None:
        with training.averaged():
            write(run.work / "preview", denoiser, training.step)
            if run.decay:
                print(f"validation loss: {validation_loss():.5f} of the moving average", flush=True)
        if run.device.type == "cpu":  # on a GPU these pictures would take a tenth of the time
            preview_sheet(load(run.work / "preview")).save(training.work / f"samples-{training.step:06d}.png")

    training.run(
        lambda step: batch_loss(step, size),
        preview=preview,
        preview_every=None if run.device.type == "cuda" else 500,
        save_every=90.0 if run.device.type == "cuda" else 180.0,
        stop_at=run.stop_at,
    )
    if run.decay:
        weights = validation_loss()
        with training.averaged():
            average = validation_loss()
        print(f"validation loss: {average:.5f} of the moving average, {weights:.5f} of the weights", flush=True)
        if weights < average:
            return write(run.out, denoiser, training.step)
    training.load_average()
    return write(run.out, denoiser, training.step)


def compile_ahead(size: int, device: torch.device) -> None:
    """Compiles a training step for batches of this size, so that the compiler finds it in its cache on disk later.

    For a process of its own, while this one trains something else.
    """
    denoiser = Denoiser()
    denoiser.unet.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    denoiser.to(device)
    ids = torch.zeros(size, load_tokenizer().model_max_length, dtype=torch.long, device=device)
    side = UNET_CONFIG.sample_size
    assert isinstance(side, int)
    x0 = torch.zeros(size, UNET_CONFIG.in_channels, side, side, device=device)
    alphas_cumprod = DDIMScheduler(SCHEDULER_CONFIG).alphas_cumprod.to(device)
    loss, maps = denoising_loss(
        torch.compile(denoiser, dynamic=False), alphas_cumprod, x0, ids, seeded_generator(0, device=device)
    )
    sum((probs.float().square().mean() for probs in maps.values()), loss).backward()


def preview_sheet(model: Pipeline) -> Image.Image:
    """Pictures of PREVIEW_PROMPTS, always from the same noise, to follow the training by eye."""
    pictures = [(model.generate(prompt, seed=i, steps=25).image, prompt) for i, prompt in enumerate(PREVIEW_PROMPTS)]
    return grid(pictures, 4, 128)
