"""A user's script, checked by mypy (`make lint`): the public API has types, and none of them is Any."""

from typing import assert_type

import torch
from PIL import Image

import minip2p

pipe = minip2p.load()
assert_type(pipe, minip2p.Pipeline)
run = pipe.generate("a cat on the beach", seed=1)
assert_type(run, minip2p.Trajectory)
assert_type(pipe.generate(["a cat", "a dog"], seed=3), list[minip2p.Trajectory])
assert_type(pipe.generate("a cat", seed=[0, 1, 2], steps=4), list[minip2p.Trajectory])
assert_type(pipe.generate(["a cat", "a dog"], seed=range(2)), list[minip2p.Trajectory])
pipe.generate("a cat", seed="1")  # type: ignore[arg-type]
assert_type(pipe.with_progress(iter).generate("a cat", on_step=lambda preview: preview.images), minip2p.Trajectory)
assert_type(run.image, Image.Image)
assert_type(run.latents, torch.Tensor)
assert_type(run.maps("cat"), torch.Tensor)
assert_type(run.maps(["cat", "<end>"], heads=(0,), steps=range(10), sites=minip2p.SiteFilter(("up",))), torch.Tensor)
assert_type(pipe.edit(run, "a tiger on the beach"), minip2p.Trajectory)
assert_type(pipe.edit(run, "a tiger", cross_replace=0.6, local_blend=("cat", "tiger")), minip2p.Trajectory)
pipe.edit(run, "a tiger", cross_replace="much")  # type: ignore[call-overload]
assert_type(pipe.edit(run, ["a tiger on the beach", "a lion on the beach"]), list[minip2p.Trajectory])
assert_type(pipe.edit(run, "a tiger", on_step=lambda preview: preview.predicted_x0.shape), minip2p.Trajectory)
pipe.edit(run, "a tiger", on_step=3)  # type: ignore[call-overload]
live = pipe.live(run)
assert_type(live.edit("a tiger on the beach", cross_replace=0.6), minip2p.Trajectory)
live.edit("a tiger on the beach", cross_replace="much")  # type: ignore[arg-type]
assert_type(pipe.invert("photo.png", "a cat"), minip2p.Trajectory)
assert_type(minip2p.LocalBlend("cat", "tiger"), minip2p.LocalBlend)
