"""A user's script, checked by mypy (`make lint`): the public API has types, and none of them is Any."""

from typing import assert_type

import torch
from PIL import Image

import minip2p

pipe = minip2p.load()
assert_type(pipe, minip2p.Pipeline)
run = pipe.generate("a cat on the beach", seed=1)
assert_type(run, minip2p.Trajectory)
assert_type(run.image, Image.Image)
assert_type(run.latents, torch.Tensor)
assert_type(run.maps("cat"), torch.Tensor)
assert_type(pipe.edit(run, "a tiger on the beach"), minip2p.Trajectory)
assert_type(pipe.edit(run, "a tiger", cross_replace=0.6, local_blend=("cat", "tiger")), minip2p.Trajectory)
pipe.edit(run, "a tiger", cross_replace="much")  # type: ignore[call-overload]
assert_type(pipe.edit(run, ["a tiger on the beach", "a lion on the beach"]), list[minip2p.Trajectory])
assert_type(pipe.invert("photo.png", "a cat"), minip2p.Trajectory)
assert_type(minip2p.LocalBlend("cat", "tiger"), minip2p.LocalBlend)
