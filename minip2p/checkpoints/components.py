"""What a run runs on: the networks and the schedule, and the one call that asks them for the noise.

Axes: b batch, c h w latents, n tokens, d width of their embedding.
"""

import math
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from minip2p.attention.contract import Attend, Site, fused
from minip2p.checkpoints.origin import CheckpointOrigin
from minip2p.io.tensors import fingerprint
from minip2p.sched import DDIMScheduler
from minip2p.text.encoder import TextEncoder
from minip2p.unet import UNet
from minip2p.vae import VAE
from minip2p.validation import is_integer


@dataclass(frozen=True, eq=False)
class ImageConditioning:
    """What a UNet reads beside the latents, where it was made to: channels, 1 c h w. guidance: w_I of InstructPix2Pix,
    whose unconditional rows have zeros there; None where all rows have the same."""

    channels: Tensor
    image_guidance_scale: float | None = None

    def rows(self, count: int, empty: int = 0) -> Tensor:
        """For so many rows, of which the first `empty` have zeros."""
        full = self.channels.expand(count - empty, -1, -1, -1)
        return torch.cat([torch.zeros_like(self.channels).expand(empty, -1, -1, -1), full])


@dataclass(eq=False)
class Components:
    """What a run runs on. Latents and the schedule are float32 whatever the networks' dtype.

    rows: how many rows the UNet has run so far, in which costs are counted.
    """

    unet: UNet
    vae: VAE
    text: TextEncoder
    scheduler: DDIMScheduler
    origin: CheckpointOrigin = field(default_factory=CheckpointOrigin)
    rows: int = field(default=0, init=False)

    @property
    def device(self) -> torch.device:
        return self.unet.conv_in.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.unet.conv_in.weight.dtype

    @cached_property
    def fingerprint(self) -> str:
        """Tells whether a file is of this model, in this dtype: from each weight's name, shape and some of its numbers,
        and what of the configurations makes other numbers of them."""
        unet, vae, encoders = self.unet.config, self.vae.config, self.text.encoders.values()
        said = [
            self.scheduler.config,
            unet.per_level(unet.attention_head_dim),
            unet.norm_num_groups,
            unet.norm_eps,
            unet.flip_sin_to_cos,
            unet.freq_shift,
            vae.scaling_factor,
            vae.shift_factor,
            vae.norm_num_groups,
            self.text.zero_empty_prompt,
        ]
        said += [
            (one.hidden_act, one.num_attention_heads, one.layer_norm_eps, one.eos_token_id)
            for one in (encoder.config for encoder in encoders)
        ]
        return fingerprint((self.unet, self.vae, *encoders), repr(said))

    def decode(self, latents: Tensor) -> Tensor:
        """Latents b c h w -> pictures in [-1, 1], b 3 H W. Raises ValueError where they are not finite."""
        pictures = self.vae.decode(self.vae.unscale(latents).to(self.vae.dtype)).float()
        if not torch.isfinite(pictures).all():
            raise self.non_finite_error("the decoded picture is not finite")
        return pictures.clamp(-1, 1)

    def encode(self, pictures: Tensor, refine_steps: int = 0) -> Tensor:
        """Pictures in [-1, 1], b 3 H W -> latents b c h w, float32: the mean of what the encoder says. polish: see
        `polished`. Raises ValueError where they are not finite."""
        mean, _ = self.vae.encode(pictures.to(self.device, self.vae.dtype))
        if not torch.isfinite(mean).all():
            raise self.non_finite_error("the picture's latents are not finite")
        return self.refine_latents(self.vae.scale(mean.float()), pictures.to(self.device), refine_steps)

    def refine_latents(self, latents: Tensor, pictures: Tensor, updates: int, rate: float = 0.1) -> Tensor:
        """The encoder's latents, moved to where the decoder comes nearer to the pictures, since it is not the encoder's
        inverse (Avrahami et al. 2022, blended latent diffusion, section 4.2, weigh this among other ways):

            min over z of  ‖D(z) − x‖²

        by Adam, its rate falling evenly to 0; the best that was met. Each update is a pass through the decoder, both
        ways. Raises ValueError for updates that are no number.
        """
        if not is_integer(updates) or updates < 0:
            raise ValueError(f"polish is a whole number of updates from 0 on, not {updates!r}")
        if updates == 0:
            return latents
        with torch.inference_mode(False), torch.enable_grad():
            best, least, x = latents, math.inf, pictures.float().clone()
            z = latents.detach().clone().requires_grad_()
            adam = torch.optim.Adam([z], lr=rate)
            for update in range(updates + 1):
                picture = self.vae.decode(self.vae.unscale(z).to(self.vae.dtype)).float()
                loss = (picture - x).square().sum()  # a mean's gradients would vanish in 16 bits
                if loss < least:
                    best, least = z.detach().clone(), float(loss.detach())
                if update < updates:
                    adam.param_groups[0]["lr"] = rate * (1 - update / updates)
                    adam.zero_grad()
                    loss.backward()
                    adam.step()
        return best

    @property
    def extra_channels(self) -> int:
        """How many channels the UNet reads beside the latents: none, a picture's (InstructPix2Pix), or those and a
        mask (inpainting)."""
        return self.unet.config.in_channels - self.vae.config.latent_channels

    def non_finite_error(self, what: str) -> ValueError:
        """The error to raise where a result is not finite: it names the first damaged weight, if there is one."""
        for name, part in {"unet": self.unet, "vae": self.vae, **self.text.encoders}.items():
            for key, p in part.named_parameters():
                if not torch.isfinite(p).all():
                    return ValueError(
                        f"{self.origin.files.get(name, name)}: {key} is not finite: the weights are damaged"
                    )
        return ValueError(f"{what}; try --dtype float32 or less guidance")

    def guided_noise(
        self,
        x: Tensor,
        t: int,
        unconditional: Tensor,
        conditional: Tensor,
        guidance_scale: float,
        attend: Attend,
        same_latents: bool = False,
        proximal_quantile: float = 0.0,
        image: ImageConditioning | None = None,
    ) -> Tensor:
        """Classifier-free guidance (Ho & Salimans 2022, eq. 6, as w = 1 + theirs):  ε_u + w prox(ε_c − ε_u).

        x: b c h w; embeddings: 1 n d or b n d, and b n d. `attend` acts on the conditional rows alone. Rows that
        would cancel are not run: the conditional ones at w = 0, the unconditional ones at w = 1; and where all of x is
        alike, as at the first step of several edits, one unconditional row serves all. proximal: see `shrunk`.
        beside: see there; where it guides, see `two_ways`.
        """
        x, b = x.to(self.dtype), len(x)
        n = 1 if same_latents else b
        without = unconditional.expand(n, -1, -1)
        if image is not None and image.image_guidance_scale is not None:
            return self.image_text_guided_noise(x, t, without, conditional, guidance_scale, attend, image)
        if guidance_scale == 1 and not proximal_quantile:
            return self.unet_noise(x, t, conditional, attend, image=image)
        if guidance_scale == 0:
            return self.unet_noise(x[:n], t, without, fused, image=image).expand(b, -1, -1, -1)
        rows, texts = torch.cat([x[:n], x]), torch.cat([without, conditional])
        both = self.unet_noise(rows, t, texts, conditional_only(n, attend), image=image)
        eps_u, eps_c = both[:n], both[n:]
        return eps_u + guidance_scale * soft_threshold(eps_c - eps_u, proximal_quantile)

    def image_text_guided_noise(
        self,
        x: Tensor,
        t: int,
        without: Tensor,
        conditional: Tensor,
        w: float,
        attend: Attend,
        beside: ImageConditioning,
    ) -> Tensor:
        """Guidance by a picture and by words (Brooks et al. 2022, eq. 3), c_I the picture and c_T the words:

            ε(∅, ∅) + w_I (ε(c_I, ∅) − ε(∅, ∅)) + w_T (ε(c_I, c_T) − ε(c_I, ∅))

        Rows whose factor is 0 are not run.
        """
        n, w_i = len(without), beside.image_guidance_scale or 0.0
        counts = n * (w_i != 1), n * (w_i != w), len(x) * (w != 0)  # of the three, in this order
        rows = torch.cat([x[: counts[0]], x[: counts[1]], x[: counts[2]]])
        texts = torch.cat([without[: counts[0]], without[: counts[1]], conditional[: counts[2]]])
        attend = (
            conditional_only(counts[0] + counts[1], attend) if counts[2] else fused
        )  # no words, no attention to them
        made = self.unet_noise(rows, t, texts, attend, image=beside, empty=counts[0])
        factors = (1 - w_i, w_i - w, w)
        found = [factor * eps for factor, eps in zip(factors, made.split(counts), strict=True) if len(eps)]
        return sum(found, torch.zeros_like(x, dtype=made.dtype))

    def unet_noise(
        self,
        x: Tensor,
        t: int,
        context: Tensor,
        attend: Attend,
        gradient_checkpointing: bool = False,
        image: ImageConditioning | None = None,
        empty: int = 0,
    ) -> Tensor:
        """The UNet's prediction. Stable Diffusion XL is told of a picture that it was of this size and is whole: its
        rows and columns, where it was cut, rows and columns again (Podell et al. 2023, section 2.2). empty: the first
        so many rows have nothing beside them."""
        self.rows += len(x)
        words, pooled = self.text.split_pooled(context)
        added = None
        if pooled is not None:
            size = [side * self.vae.stride for side in x.shape[-2:]]
            added = pooled, torch.tensor([[*size, 0, 0, *size]], device=x.device).expand(len(x), -1)
        if image is not None:
            x = torch.cat([x, image.rows(len(x), empty).to(x)], dim=1)
        return self.unet(x, t, words, attend, added, gradient_checkpointing).float()


def soft_threshold(difference: Tensor, proximal: float) -> Tensor:
    """The proximal map of λ‖·‖₁ (Han et al. 2023, proximal guidance): each row of b c h w moved towards 0 by λ, its
    quantile of so much; where the difference of two predictions is small, it is nothing. 0: as it is. (The published
    code takes one quantile over the batch, the source's row of zeros included, and so leaves more of the target's.)"""
    if proximal == 0:
        return difference
    size = difference.abs().flatten(1)
    bound = size.quantile(proximal, dim=1)[:, None, None, None]
    return difference - difference.clamp(-bound, bound)


def unet_rows(
    count: int,
    guidance_scale: float,
    same_latents: bool = False,
    proximal_quantile: float = 0.0,
    image: ImageConditioning | None = None,
) -> int:
    """How many rows `predict` runs for so many latents."""
    n = 1 if same_latents else count
    if image is not None and image.image_guidance_scale is not None:
        return n * ((image.image_guidance_scale != 1) + (image.image_guidance_scale != guidance_scale)) + count * (
            guidance_scale != 0
        )
    if guidance_scale == 1 and not proximal_quantile:
        return count
    return n if guidance_scale == 0 else n + count


def conditional_only(n: int, attend: Attend) -> Attend:
    """Acts as `attend` on all rows but the first n, and as `fused` on these. Always in two calls, so that a run has the
    same bits whether or not its attention is watched."""

    def split(q: Tensor, k: Tensor, v: Tensor, site: Site) -> Tensor:
        return torch.cat([fused(q[:n], k[:n], v[:n]), attend(q[n:], k[n:], v[n:], site)])

    return split


MAX_PIXELS = 2**26  # 8192 x 8192: what a mistyped size asks for must not take all memory


def latent_size(parts: Components, size: tuple[int, int] | None) -> tuple[int, int]:
    """Latent rows and columns for a picture of so many rows and columns; the UNet's sample size where None."""
    if size is None:
        side = parts.unet.config.sample_size
        if side is None:
            raise ValueError("this model has no sample size of its own: give a size")
        return side if isinstance(side, tuple) else (side, side)
    stride, least = parts.vae.stride, parts.vae.stride * parts.unet.stride
    sides = tuple(size) if isinstance(size, tuple | list) else ()
    if len(sides) != 2 or any(not is_integer(side) or side % stride or side < least for side in sides):
        raise ValueError(f"size must be two multiples of {stride} of at least {least} pixels, not {size}")
    if size[0] * size[1] > MAX_PIXELS:
        raise ValueError(f"a picture of {size[0]} x {size[1]} pixels is too large: {MAX_PIXELS} are the most")
    return size[0] // stride, size[1] // stride
