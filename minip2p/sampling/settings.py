"""What a run is asked for (`RunSettings`), and where it starts once that has been checked (`RunStart`).

Axes: c h w latents.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from minip2p.attention.contract import Attend, fused
from minip2p.attention.store import check_attend
from minip2p.checkpoints.components import Components
from minip2p.sampling.conditioning import Conditioning, ImageConditioning
from minip2p.validation import is_finite, is_integer


@dataclass(frozen=True, eq=False, kw_only=True)
class RunSettings:
    """The settings of a run and their defaults, the only place where these stand.

    seed: of the noise. steps: of the scheduler; None is its own number, 50, or 4 for LCM. guidance_scale: w of
    classifier-free guidance; None is the model's own. size: rows and columns of the picture in pixels; None is the
    model's own. negative_prompt: what the picture should not show. clip_skip: the layer of the text encoder whose
    hidden states are read; 1 is the model's own, see `TextEncoder`. latents: the initial noise itself, 1 c h w, instead
    of size and seed; the seed still draws the fresh noise of a consistency model's steps. attend: the attention of the
    conditional rows.

    Two approximations save unconditional rows. guidance_interval: the share (start, end) of the steps that are guided;
    None is all. uncond_every: at every n-th of them unconditional rows run; 1 is at all. See `Conditioning`.
    Raises ValueError for values that are wrong whatever the model is.
    """

    seed: int = 0
    steps: int | None = None
    guidance_scale: float | None = None
    size: tuple[int, int] | None = None
    negative_prompt: str = ""
    clip_skip: int = 1
    latents: Tensor | None = None
    attend: Attend = fused
    guidance_interval: tuple[float, float] | None = None
    uncond_every: int = 1

    def __post_init__(self) -> None:
        if self.guidance_scale is not None and not is_finite(self.guidance_scale):
            raise ValueError(f"guidance_scale must be a finite number, not {self.guidance_scale}")
        if not is_integer(self.seed) or not 0 <= self.seed < 2**63:
            raise ValueError(f"seed must lie between 0 and 2^63 - 1, not {self.seed}")
        if not is_integer(self.clip_skip) or self.clip_skip < 1:
            raise ValueError(f"clip_skip is counted from 1, which skips nothing, and is {self.clip_skip}")
        check_attend(self.attend)
        interval = self.guidance_interval
        if interval is not None:
            is_pair = isinstance(interval, tuple | list) and len(interval) == 2 and all(map(is_finite, interval))
            if not is_pair or not 0 <= interval[0] < interval[1] <= 1:
                raise ValueError(f"guidance_interval is two shares 0 <= start < end <= 1 of a run, not {interval!r}")
        if not is_integer(self.uncond_every) or self.uncond_every < 1:
            raise ValueError(f"uncond_every must be a whole number from 1 on, not {self.uncond_every!r}")


@dataclass(frozen=True, eq=False)
class RunStart:
    """A run about to start: its prompt, its settings as the model understands them, and its noise, 1 c h w.

    seed: None where the latents were given. inversion: the method where the noise is a photograph, else "".
    """

    prompt: str
    noise: Tensor
    steps: int
    guidance_scale: float
    negative_prompt: str = ""
    clip_skip: int = 1
    seed: int | None = None
    inversion: str = ""
    attend: Attend = fused
    conditioning: Conditioning = field(default_factory=Conditioning)


def prepare_run(
    components: Components,
    prompt: str,
    settings: RunSettings,
    *,
    default_guidance: float,
    image: ImageConditioning | None = None,
) -> RunStart:
    """Checks a run's settings against a model and draws its noise.

    The noise is followed by that of each step, where the scheduler has `fresh_noise`.

    default_guidance: the model's own guidance scale. image: what InstructPix2Pix and inpainting models read besides.
    Raises ValueError with one line for what the model cannot take.
    """
    guidance_scale = settings.guidance_scale
    if guidance_scale is None or (guidance_scale == 0 and default_guidance == 1):
        guidance_scale = default_guidance  # the cards of distilled models say 0 and mean: no guidance
    check_read_guidance(components, "guidance_scale", guidance_scale)
    steps = components.scheduler.default_steps if settings.steps is None else settings.steps
    components.scheduler.timesteps(steps)
    if settings.clip_skip > components.text.max_clip_skip:
        raise ValueError(
            f"clip_skip must lie between 1, which skips nothing, and {components.text.max_clip_skip} for this model's "
            f"text encoder, and is {settings.clip_skip}"
        )
    for text in (prompt, settings.negative_prompt):
        components.text.prompt(text)
    if components.extra_channels != (0 if image is None else image.channels.shape[1]):
        raise ValueError(
            "this model makes a picture from a picture: use instruct, or where it takes a mask, inpaint"
            if components.extra_channels
            else "this model reads no picture besides its latents"
        )
    image_size = None if image is None else (image.channels.shape[-2], image.channels.shape[-1])
    channels, generator = components.vae.config.latent_channels, torch.Generator().manual_seed(int(settings.seed))
    if settings.latents is None:
        shape = image_size or components.latent_size(settings.size)
        noise = torch.randn(1, channels, *shape, generator=generator)
    else:
        check_latents(settings.latents, channels, image_size)
        noise = settings.latents.float()
    eta, fresh_noise = components.scheduler.fresh_noise, None
    if eta is not None:  # drawn step by step, as diffusers draws it
        fresh_noise = torch.cat([torch.randn(noise.shape, generator=generator) for _ in range(steps)])
    interval = settings.guidance_interval
    conditioning = Conditioning(
        image=image,
        variance_noise=fresh_noise,
        eta=eta,
        guidance_interval=None if interval is None else (float(interval[0]), float(interval[1])),
        uncond_every=int(settings.uncond_every),
    )
    if conditioning.is_approximate:
        check_approximation(components, conditioning, steps, guidance_scale)
    return RunStart(
        prompt,
        noise,
        steps=steps,
        guidance_scale=guidance_scale,
        negative_prompt=settings.negative_prompt,
        clip_skip=int(settings.clip_skip),
        seed=settings.seed if settings.latents is None else None,
        attend=settings.attend,
        conditioning=conditioning,
    )


def check_read_guidance(components: Components, name: str, scale: float) -> None:
    """Raises ValueError for a guidance scale that a model which reads it has not learned. name: of the option."""
    if components.unet.reads_guidance and scale < 1:
        raise ValueError(
            f"{name} must be at least 1 for this model, which reads it and has learned no other, not {scale:g}"
        )


def check_approximation(components: Components, conditioning: Conditioning, steps: int, guidance_scale: float) -> None:
    """Raises ValueError where a run has no unconditional rows to save by `guidance_interval` and `uncond_every`."""
    subject = "guidance_interval and uncond_every"
    if components.unet.reads_guidance:
        raise ValueError(f"{subject} save unconditional rows, and this model, which reads the guidance scale, has none")
    if guidance_scale in (0, 1):
        raise ValueError(
            f"{subject} save unconditional rows, and there are none to save at guidance {guidance_scale:g}"
        )
    if conditioning.image is not None and conditioning.image.image_guidance_scale is not None:
        raise ValueError(f"{subject} are for guidance by words alone, and an instruction is guided by its picture too")
    if not conditioning.guided_steps(steps):
        start, end = conditioning.guidance_interval or (0.0, 1.0)
        raise ValueError(f"guidance_interval: none of the {steps} steps lies from {start:g} to {end:g} of the run")


def check_latents(latents: object, channels: int, size: tuple[int, int] | None) -> None:
    """Raises ValueError for anything but finite latents, 1 channels h w; size: the rows and columns they must have."""
    shape = tuple(getattr(latents, "shape", ()))
    fits = isinstance(latents, Tensor) and len(shape) == 4 and shape[:2] == (1, channels) and latents.numel() > 0
    if not fits or not isinstance(latents, Tensor) or (size is not None and shape[2:] != size):
        raise ValueError(f"latents must be 1 {channels} h w, not {shape}")
    if not torch.isfinite(latents).all():
        raise ValueError("latents must be finite; these have NaN or infinity in them")
