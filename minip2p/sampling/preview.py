"""What a run shows of itself while it is sampled: the picture that each step predicts.

Axes: b batch, c h w latents.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from PIL import Image
from torch import Tensor

from minip2p.checkpoints.components import Components
from minip2p.io.images import to_pil


@dataclass(frozen=True, eq=False)
class StepPreview:
    """The prediction of one step, for the function `on_step` of `Pipeline.generate` and `Pipeline.edit`.

    step: its number, counted from 0. steps: how many the run has. predicted_x0: the latents x_0 that the step predicts,
    b c h w: a row for each picture, or for each target of an edit, in their order. A local blend comes after the
    prediction, so this step's blend is not in it.
    """

    components: Components = field(repr=False)
    step: int
    steps: int
    predicted_x0: Tensor = field(repr=False)

    @property
    def images(self) -> list[Image.Image]:
        """The predicted pictures, decoded when they are asked for."""
        return [to_pil(picture) for picture in self.components.decode(self.predicted_x0).cpu()]


OnStep = Callable[[StepPreview], object]  # what it returns is not used
