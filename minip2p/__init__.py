"""minip2p: Stable Diffusion, minimal, whose attention is an argument; and on it Prompt-to-Prompt.

import minip2p
model = minip2p.load()
run = model.generate("a cat on the beach", seed=1)
out = model.edit(run, "a dog on the beach")
out.image.save("dog.png")
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

# Imported when they are first asked for, so that the command line answers --help without loading torch.
_HOMES = (
    ("minip2p.loading", ("load",)),
    ("minip2p.model", ("Model",)),
    ("minip2p.trajectory", ("Trajectory",)),
    ("minip2p.blend", ("Blend",)),
    ("minip2p.rule", ("Where",)),
    ("minip2p.attention", ("Site", "Attend", "MapFn", "Store", "fused", "explicit", "chain")),
)
__all__ = ["__version__", "load", "Model", "Trajectory", "Blend", "Where", "Site", "Attend", "MapFn", "Store", "fused",
           "explicit", "chain"]  # fmt: skip


def __getattr__(name: str) -> Any:
    for home, names in _HOMES:
        if name in names:
            return getattr(import_module(home), name)
    raise AttributeError(f"module 'minip2p' has no attribute {name!r}")
