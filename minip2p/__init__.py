"""minip2p: Stable Diffusion, minimal, whose attention is an argument; and on it Prompt-to-Prompt."""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOMES = (
    ("minip2p.checkpoints.load", ("load",)),
    ("minip2p.pipeline", ("Pipeline",)),
    ("minip2p.sampling.trajectory", ("Trajectory",)),
    ("minip2p.p2p.local_blend", ("LocalBlend",)),
    ("minip2p.attention.contract", ("Site", "SiteFilter", "Attend", "MapFn", "fused", "explicit", "chain")),
    ("minip2p.attention.store", ("AttentionStore",)),
)


def __getattr__(name: str) -> Any:
    for home, names in _HOMES:
        if name in names:
            return getattr(import_module(home), name)
    raise AttributeError(f"module 'minip2p' has no attribute {name!r}")
