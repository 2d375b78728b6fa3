"""A photograph is inverted, masked by its words, and edited inside the mask: python examples/photograph.py"""

from pathlib import Path

import minip2p
from minip2p.io import viz

out = Path("out")
out.mkdir(exist_ok=True)

pipe = minip2p.load()
photo = pipe.invert("tests/data/renders/00.png", "on the street, a blue umbrella and a red lamp", vae_refine_steps=20)
mask = photo.mask("umbrella") & ~photo.mask("lamp")
target = "on the street, a green umbrella and a red lamp"
edited = pipe.edit(photo, target, local_blend=minip2p.LocalBlend(mask=mask, start=(0.2, 0.5)))

image = edited.image
panels = [(photo.image, "the photograph"), (viz.mask_image(mask, image.size), "mask"), (image, "edited")]
viz.grid(panels, columns=3).save(out / "photograph.png")
print(out / "photograph.png")
