"""TODO: describe."""

from collections.abc import Callable, Mapping
from inspect import signature
from types import MappingProxyType

from minip2p.inversion.ddim import ddim, direct_inversion, negative_prompt, proximal
from minip2p.inversion.edit_friendly import edit_friendly
from minip2p.inversion.null_text import null_text
from minip2p.sampling.trajectory import Trajectory

METHODS: Mapping[str, Callable[..., Trajectory]] = MappingProxyType(
    {
        "ddim": ddim,
        "direct": direct_inversion,
        "negative-prompt": negative_prompt,
        "proximal": proximal,
        "null-text": null_text,
        "edit-friendly": edit_friendly,
    }
)


def get_method(method: str, options: Mapping[str, object]) -> Callable[..., Trajectory]:
    """The method of a name. Raises ValueError for one that is not known, and for options that it does not have."""
    if not isinstance(method, str) or method not in METHODS:
        raise ValueError(f"the method is one of {', '.join(METHODS)}, not {method!r}")
    own = [name for name, one in signature(METHODS[method]).parameters.items() if one.kind is one.KEYWORD_ONLY]
    if unknown := [name for name in options if name not in own]:
        has = f"only {', '.join(own)}" if own else "nor any other option"
        raise ValueError(f"{method} inversion has no {unknown[0]}, {has}")
    return METHODS[method]
