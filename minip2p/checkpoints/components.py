"""The networks that a run uses, and the noise schedule: what a checkpoint contains.

Axes: b batch, c h w latents, H W pixels.
"""

from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from minip2p.checkpoints.diagnosis import non_finite_error
from minip2p.checkpoints.origin import CheckpointOrigin
from minip2p.io.tensors import fingerprint
from minip2p.sched import DDIMScheduler
from minip2p.text.encoder import TextEncoder
from minip2p.unet import UNet
from minip2p.vae import VAE
from minip2p.validation import is_integer

MAX_PIXELS = 2**26  # 8192 x 8192: a mistyped size must not take all memory


@dataclass
class RowCounter:
    """Counts the rows (latents) that the UNet processes: the unit in which the cost of a run is predicted."""

    rows: int = 0


@dataclass(frozen=True, eq=False)
class Components:
    """The networks and the noise schedule of a model. Latents and the schedule are float32, whatever the networks are.

    origin: the files that the weights come from. counter: where given, counts the rows of every call of the UNet.
    """

    unet: UNet
    vae: VAE
    text: TextEncoder
    scheduler: DDIMScheduler
    origin: CheckpointOrigin = field(default_factory=CheckpointOrigin)
    counter: RowCounter | None = None

    @property
    def device(self) -> torch.device:
        return self.unet.conv_in.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the UNet."""
        return self.unet.conv_in.weight.dtype

    @property
    def extra_channels(self) -> int:
        """How many channels the UNet reads besides the latents.

        None for text-to-image models; the latents of an image for InstructPix2Pix; a mask and the latents of a masked
        image for inpainting.
        """
        return self.unet.config.in_channels - self.vae.config.latent_channels

    @cached_property
    def fingerprint(self) -> str:
        """Identifies the model and its dtype, so that a run file is only opened by the model that made it.

        It is computed from the name, shape and a few numbers of each weight, and from the configuration fields that
        change results without changing shapes.
        """
        unet, vae, encoders = self.unet.config, self.vae.config, self.text.encoders.values()
        fields: list[object] = [
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
        for config in (encoder.config for encoder in encoders):
            fields.append((config.hidden_act, config.num_attention_heads, config.layer_norm_eps, config.eos_token_id))
        return fingerprint((self.unet, self.vae, *encoders), repr(fields))

    def shares_networks(self, other: "Components") -> bool:
        """Whether both are the same model, whatever counts their rows."""
        return (
            self.unet is other.unet
            and self.vae is other.vae
            and self.text is other.text
            and self.scheduler is other.scheduler
        )

    def decode(self, latents: Tensor) -> Tensor:
        """Latents b c h w -> pictures b 3 H W in [-1, 1]. Raises ValueError where the result is not finite."""
        pictures = self.vae.decode(self.vae.unscale(latents).to(self.vae.dtype)).float()
        if not torch.isfinite(pictures).all():
            raise non_finite_error(self.networks, self.origin, "the decoded picture is not finite")
        return pictures.clamp(-1, 1)

    def encode(self, pictures: Tensor) -> Tensor:
        """Pictures b 3 H W in [-1, 1] -> latents b c h w, float32: the mean of the encoder's distribution.

        Raises ValueError where the result is not finite.
        """
        mean, _ = self.vae.encode(pictures.to(self.device, self.vae.dtype))
        if not torch.isfinite(mean).all():
            raise non_finite_error(self.networks, self.origin, "the latents of the picture are not finite")
        return self.vae.scale(mean.float())

    @property
    def networks(self) -> dict[str, torch.nn.Module]:
        """The networks by the names of their folders in a checkpoint."""
        return {"unet": self.unet, "vae": self.vae, **self.text.encoders}

    def latent_size(self, size: tuple[int, int] | None) -> tuple[int, int]:
        """Rows and columns of the latents of a picture.

        size: rows and columns of the picture in pixels; None is the size that the model was trained at.
        Raises ValueError for a size that the networks cannot process.
        """
        if size is None:
            side = self.unet.config.sample_size
            if side is None:
                raise ValueError("this model has no sample size of its own: give a size")
            return side if isinstance(side, tuple) else (side, side)
        stride, smallest = self.vae.stride, self.vae.stride * self.unet.stride
        sides = tuple(size) if isinstance(size, tuple | list) else ()
        if len(sides) != 2 or any(not is_integer(side) or side % stride or side < smallest for side in sides):
            raise ValueError(f"size must be two multiples of {stride} of at least {smallest} pixels, not {size}")
        if size[0] * size[1] > MAX_PIXELS:
            raise ValueError(f"a picture of {size[0]} x {size[1]} pixels is too large: {MAX_PIXELS} are the most")
        return size[0] // stride, size[1] // stride
