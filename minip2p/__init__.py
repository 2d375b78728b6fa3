"""minip2p: Stable Diffusion written from scratch, whose attention is an argument, and Prompt-to-Prompt on top of it.

import minip2p
pipe = minip2p.load()
run = pipe.generate("a cat on the beach", seed=1)
out = pipe.edit(run, "a tiger on the beach")
out.image.save("tiger.png")
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from minip2p.attention.contract import Attend, MapFn, Site, SiteFilter, chain, explicit, fused
    from minip2p.attention.store import AttentionStore
    from minip2p.p2p.local_blend import LocalBlend
    from minip2p.p2p.warp import Move
    from minip2p.pipeline import Pipeline, load
    from minip2p.planner.plan import Plan
    from minip2p.planner.planners import plan
    from minip2p.sampling.trajectory import Trajectory

__version__ = "0.1.0"
__all__ = [
    "__version__",
    "load",
    "Pipeline",
    "Trajectory",
    "LocalBlend",
    "Move",
    "Plan",
    "plan",
    "SiteFilter",
    "Site",
    "Attend",
    "MapFn",
    "AttentionStore",
    "fused",
    "explicit",
    "chain",
]


def __getattr__(name: str) -> object:
    """Imports a name when it is first asked for, so that `minip2p --help` answers without loading torch."""
    modules = {
        "minip2p.pipeline": ("load", "Pipeline"),
        "minip2p.planner.plan": ("Plan",),
        "minip2p.planner.planners": ("plan",),
        "minip2p.sampling.trajectory": ("Trajectory",),
        "minip2p.p2p.local_blend": ("LocalBlend",),
        "minip2p.p2p.warp": ("Move",),
        "minip2p.attention.contract": ("Site", "SiteFilter", "Attend", "MapFn", "fused", "explicit", "chain"),
        "minip2p.attention.store": ("AttentionStore",),
    }
    for module, names in modules.items():
        if name in names:
            return getattr(import_module(module), name)
    raise AttributeError(f"module 'minip2p' has no attribute {name!r}")
