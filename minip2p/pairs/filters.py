"""What pairs are filtered by: CLIP where there is one, else the model itself as a classifier; and the background.

The judge of the small world is no filter: it is the exam (`minip2p.pairs.exam`).

Axes: c h w latents, H W pixels.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from minip2p.checkpoints.components import Components
from minip2p.io.images import to_pil
from minip2p.metrics.clip_score import ClipScore
from minip2p.metrics.image import psnr
from minip2p.sampling.batches import MAX_BATCH, even_chunks
from minip2p.sampling.guidance import conditional_scale, unet_noise
from minip2p.sampling.trajectory import Trajectory
from minip2p.sched.ddim import Step


@torch.no_grad()
def clip_scores(clip: ClipScore, before: Tensor, after: Tensor, source: str, target: str) -> dict[str, float]:
    """CLIP's scores of an edit (Brooks et al. 2022, section 3.1.2), cosines of its embeddings of pictures and captions.

    clip_image: of the two pictures. clip_source, clip_target: of a picture and its caption. clip_direction: of the
    difference of the pictures and the difference of the captions (Gal et al. 2021). before, after: 3 H W in [-1, 1].
    """
    inputs = clip.processor(
        text=[source, target],
        images=[to_pil(before), to_pil(after)],
        return_tensors="pt",
        padding=True,
        truncation=True,
    )
    out = clip.model(**inputs)
    images, texts = (x / x.norm(dim=-1, keepdim=True) for x in (out.image_embeds, out.text_embeds))

    def cosine(a: Tensor, b: Tensor) -> float:
        return float(torch.cosine_similarity(a, b, dim=0))

    return {
        "clip_image": cosine(*images),
        "clip_source": cosine(images[0], texts[0]),
        "clip_target": cosine(images[1], texts[1]),
        "clip_direction": cosine(images[1] - images[0], texts[1] - texts[0]),
    }


class Classifier:
    """The model as a classifier of pictures by captions (Li et al. 2023, Your Diffusion Model is Secretly a Zero-Shot
    Classifier): the caption of a picture is the one under which its noise is predicted best.

    All losses are at the same noises, one at the middle of each n-th part of the timesteps, so that their differences
    have little variance. A loss that is known is not computed again.
    guidance_scale: of the run, for a UNet that reads it. seed: of the noises.
    """

    def __init__(self, components: Components, shape: Sequence[int], *, noises: int, guidance_scale: float, seed: int):
        self.components, self.scale = components, conditional_scale(components, guidance_scale)
        total = components.scheduler.config.num_train_timesteps
        self.times = [int(total * (n + 0.5) / noises) for n in range(noises)]
        generator = torch.Generator().manual_seed(seed)
        self.noises = torch.randn(noises, *shape, generator=generator).to(components.device)
        self.known: dict[tuple[int, str], Tensor] = {}

    def measure(self, pictures: Sequence[Trajectory], captions: Sequence[str]) -> None:
        """Computes the losses of pictures, each under the caption of the same place, where they are not known."""
        pairs = dict(zip(((id(a), b) for a, b in zip(pictures, captions, strict=True)), pictures, strict=False))
        new = [(key, run) for key, run in pairs.items() if key not in self.known]
        for chunk in even_chunks(new, MAX_BATCH):
            x0 = torch.cat([run.latents[-1:] for _, run in chunk]).to(self.components.device)
            losses = self.losses(x0, [caption for (_, caption), _ in chunk])
            self.known |= {key: row for (key, _), row in zip(chunk, losses, strict=True)}

    @torch.no_grad()
    def losses(self, x0: Tensor, captions: Sequence[str]) -> Tensor:
        """The mean squared error of the UNet's prediction for latents x0 b c h w, each under its caption, at each
        noise: b noises, float64."""
        components, scheduler = self.components, self.components.scheduler
        alphas, text, rows = scheduler.alphas_cumprod.tolist(), components.text(list(captions)), []
        for t, noise in zip(self.times, self.noises, strict=True):
            x = scheduler.add_noise(x0, noise.expand_as(x0), torch.full((len(x0),), t, device=x0.device))
            wanted = scheduler.prediction_of(x, x0, Step(t, alphas[t], 1.0))
            found_noise = unet_noise(components, x.to(components.dtype), t, text, guidance_scale=self.scale)
            rows.append((found_noise - wanted).cpu().double().square().mean(dim=(1, 2, 3)))
        return torch.stack(rows, dim=1)

    def fit(self, run: Trajectory, caption: str, other: str) -> float:
        """How much better a caption fits a picture than another one does: the mean over the noises of the logarithm of
        the other's loss divided by the caption's. Both must have been measured."""
        key = id(run)
        return float((self.known[key, other] / self.known[key, caption]).log().mean())


def model_scores(classifier: Classifier, source: Trajectory, edits: Sequence[Trajectory]) -> list[dict[str, float]]:
    """The model's scores of edits of a source: fits_source, how much better the source's picture fits its own caption
    than the target's, and fits_target, how much better the edited picture fits the target's caption."""
    captions = [edit.prompt for edit in edits]
    before = [source.prompt] * len(edits)
    classifier.measure([source] * 2 * len(edits) + [*edits, *edits], [*before, *captions, *before, *captions])
    return [
        {
            "fits_source": classifier.fit(source, source.prompt, edit.prompt),
            "fits_target": classifier.fit(edit, edit.prompt, source.prompt),
        }
        for edit in edits
    ]


def background_psnr(before: Tensor, after: Tensor, mask: Tensor | None) -> float | None:
    """PSNR of two pictures 3 H W outside of a mask H W, in dB; None where there is no outside, or no mask."""
    value = math.nan if mask is None else psnr(before, after, ~mask)
    return None if math.isnan(value) else value
