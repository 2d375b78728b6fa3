"""An attention function of your own that differs at each step: python examples/custom_attention.py"""

from pathlib import Path

from torch import Tensor

import minip2p
from minip2p import Attend, Site, fused
from minip2p.io import viz


class Sharpened:
    """Cross-attention that is sharpest at the first step and usual at the last."""

    def __init__(self, steps: int, factor: float) -> None:
        self.steps, self.factor = steps, factor

    def at(self, step: int) -> Attend:
        factor = 1 + (self.factor - 1) * (1 - step / (self.steps - 1))

        def attend(q: Tensor, k: Tensor, v: Tensor, site: Site) -> Tensor:
            return fused(factor * q if site.cross else q, k, v, site)

        return attend

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, site: Site) -> Tensor:
        return fused(q, k, v, site)


out = Path("out")
out.mkdir(exist_ok=True)

pipe = minip2p.load()
prompt, steps = "a tiger in the meadow", 50
panels = []
for factor in (1.0, 1.5, 2.0, 3.0):
    run = pipe.generate(prompt, seed=3, steps=steps, attend=Sharpened(steps, factor))
    panels.append((run.image, f"{prompt}, factor {factor:g}"))
viz.grid(panels, columns=len(panels)).save(out / "custom_attention.png")
print(out / "custom_attention.png")
