"""Makes the small pictures of the documentation with the model that ships: python docs/make_figures.py

They are committed in docs/_static, so that the site builds without running a network. It takes minutes on a CPU.
"""

from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

import minip2p
from minip2p import explicit, fused
from minip2p.io import viz

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "docs/_static"
PHOTO = ROOT / "tests/data/renders/00.png"
GAP = 4


def save_strip(name: str, pictures: list[Image.Image]) -> None:
    """Pictures side by side."""
    width, height = pictures[0].size
    strip = Image.new("RGB", (len(pictures) * (width + GAP) - GAP, height), "white")
    for n, picture in enumerate(pictures):
        strip.paste(picture.convert("RGB").resize((width, height)), (n * (width + GAP), 0))
    strip.save(OUT / f"{name}.png", optimize=True)


def gray(mask: Tensor, size: tuple[int, int]) -> Image.Image:
    """A mask as a picture: white is 1."""
    return Image.fromarray((mask.float() * 255).round().to(torch.uint8).numpy()).resize(size, Image.Resampling.NEAREST)


def schedules(pipe: minip2p.Pipeline, run: minip2p.Trajectory) -> None:
    shares = (0, 0.2, 0.4, 0.6, 0.8, 1)
    save_strip(
        "schedules",
        [pipe.edit(run, "a sheep on the grass", cross_replace=tau, self_replace=tau).image for tau in shares],
    )


def local_blend(pipe: minip2p.Pipeline, run: minip2p.Trajectory) -> None:
    plain = pipe.edit(run, "a sheep on the grass")
    blended = pipe.edit(run, "a sheep on the grass", local_blend=("pig", "sheep"))
    assert blended.blend_mask is not None
    save_strip("local_blend", [run.image, plain.image, blended.image, gray(blended.blend_mask, run.image.size)])


def moving(pipe: minip2p.Pipeline) -> None:
    run = pipe.generate("a cat and a house on grass", seed=8)
    edits = (
        {"move": {"cat": (-16, 0), "house": (0, 0)}},
        {"move": {"cat": (0, 0)}, "remove": ["house"]},
    )
    duck = pipe.generate("a duck on the sea", seed=3)
    more = ({"move": {"duck": (28, 0)}}, {"resize": {"duck": 0.7}}, {"duplicate": {"duck": (40, 10)}})
    pictures = [run.image, *(pipe.edit(run, run.prompt, **options).image for options in edits)]
    save_strip("moving", pictures + [duck.image, *(pipe.edit(duck, duck.prompt, **options).image for options in more)])


def inversion(pipe: minip2p.Pipeline) -> None:
    photo = pipe.invert(PHOTO, "on the street, a blue umbrella and a red lamp")
    target = "on the street, a green umbrella and a red lamp"
    edits = [pipe.edit(photo, target).image, pipe.edit(photo, target, local_blend="umbrella").image]
    with Image.open(PHOTO) as original:
        save_strip("inversion", [original.convert("RGB"), photo.image, *edits])


def masks(pipe: minip2p.Pipeline) -> None:
    run = pipe.generate("a red car on the street", seed=5)
    picture = run.image
    heats = [viz.overlay(picture, heat) for heat in run.maps(["car", "street"])]
    cuts = [gray(run.mask("car", threshold=t), picture.size) for t in (0.3, "otsu", "85%", (0.2, 0.5))]
    save_strip("masks", [picture, *heats, *cuts])


def ablations(pipe: minip2p.Pipeline) -> None:
    run = pipe.generate("a red car on the street", seed=5)

    def uniform_head(probs: Tensor, site: minip2p.Site) -> Tensor:
        if site.cross:
            return probs
        return torch.cat([torch.full_like(probs[:, :1], 1 / probs.shape[-1]), probs[:, 1:]], dim=1)

    def sharper(q: Tensor, k: Tensor, v: Tensor, site: minip2p.Site) -> Tensor:
        return fused(1.5 * q, k, v, site) if site.cross else fused(q, k, v, site)

    shifted = explicit(lambda probs, site: probs.roll(1, -1) if site.cross else probs)
    attends = (shifted, explicit(uniform_head), sharper)
    runs = [pipe.generate(run.prompt, seed=5, attend=attend) for attend in attends]
    save_strip("ablations", [run.image, *(other.image for other in runs)])


def main() -> None:
    pipe = minip2p.load()
    run = pipe.generate("a pig on the grass", seed=1)
    schedules(pipe, run)
    local_blend(pipe, run)
    moving(pipe)
    inversion(pipe)
    masks(pipe)
    ablations(pipe)


if __name__ == "__main__":
    main()
