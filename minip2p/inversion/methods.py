"""The inversion methods by their names."""

from collections.abc import Callable, Mapping
from inspect import signature
from types import MappingProxyType

from minip2p.inversion.ddim import ddim, direct_inversion, negative_prompt, proximal
from minip2p.inversion.edit_friendly import edit_friendly
from minip2p.inversion.null_text import null_text
from minip2p.inversion.virtual import virtual
from minip2p.sampling.conditioning import Conditioning
from minip2p.sampling.trajectory import Trajectory
from minip2p.unet import UNet

UNCONDITIONAL_METHODS = ("negative-prompt", "proximal", "null-text")  # which change the unconditional rows
EXACT_METHODS = ("proximal", "null-text", "edit-friendly")  # which need the guidance of every step
InversionMethod = Callable[..., Trajectory]

METHODS: Mapping[str, InversionMethod] = MappingProxyType(
    {
        "ddim": ddim,
        "direct": direct_inversion,
        "negative-prompt": negative_prompt,
        "proximal": proximal,
        "null-text": null_text,
        "edit-friendly": edit_friendly,
        "virtual": virtual,
    }
)


def get_method(name: str, options: Mapping[str, object]) -> InversionMethod:
    """The method of a name. Raises ValueError for an unknown method, and for options that it does not have."""
    if not isinstance(name, str) or name not in METHODS:
        raise ValueError(f"the method is one of {', '.join(METHODS)}, not {name!r}")
    parameters = signature(METHODS[name]).parameters.values()
    available = [parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY]
    if unknown := [option for option in options if option not in available]:
        has = f"only {', '.join(available)}" if available else "nor any other option"
        raise ValueError(f"{name} inversion has no {unknown[0]}, {has}")
    return METHODS[name]


def check_unconditional(unet: UNet, name: str) -> None:
    """Raises ValueError for a method that changes unconditional rows, with a UNet that has none."""
    if unet.reads_guidance and name in UNCONDITIONAL_METHODS:
        raise ValueError(
            f"{name} inversion changes the unconditional rows, and this model, which reads the guidance scale, has "
            "none: use direct, edit-friendly or virtual"
        )


def check_approximate(name: str, conditioning: Conditioning) -> None:
    """Raises ValueError for a method that needs the guidance of every step, where a run leaves some of it out."""
    if conditioning.is_approximate and name in EXACT_METHODS:
        raise ValueError(
            f"{name} inversion needs the guidance of every step, which guidance_interval and uncond_every leave out: "
            "use direct, ddim, negative-prompt or virtual"
        )
