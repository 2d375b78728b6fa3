"""The settings of pairs: what is drawn, how edits are made, and what a filter requires. Presets are published."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from types import MappingProxyType
from typing import Any

from minip2p.attention.masks import check_threshold
from minip2p.p2p.options import EditOptions
from minip2p.sampling.settings import RunSettings
from minip2p.validation import check_max_queries, check_seed, is_finite, is_integer

Range = tuple[float, float]  # (lowest, highest) of a uniform draw

MASKS = ("none", "tight", "grown", "box")
CLIP_SCORES = ("clip_image", "clip_source", "clip_target", "clip_direction")
MODEL_SCORES = ("fits_source", "fits_target")
SCORES = (*CLIP_SCORES, *MODEL_SCORES, "psnr")

# What a score must be at least. CLIP: as published for InstructPix2Pix (Brooks et al. 2022); its paper says .75 for the
# similarity of the pictures and its code .7.
CLIP_LEAST: Mapping[str, float] = MappingProxyType(
    {"clip_image": 0.7, "clip_source": 0.2, "clip_target": 0.2, "clip_direction": 0.2}
)
MODEL_LEAST: Mapping[str, float] = MappingProxyType({"fits_source": 0.0, "fits_target": 0.0, "psnr": 10.0})

OF_A_KIND = ("cross_replace", "self_replace", "self_max_queries", "masks", "grow", "keep", "least")


@dataclass(frozen=True, kw_only=True)
class PairSettings:
    """How pairs are made. The defaults are for the model that ships; `PRESETS` has others.

    seed: of all draws. samples: how often each source is sampled, each time with another seed and guidance scale.
    steps, size: of the runs, see `RunSettings`. guidance, cross_replace, self_replace: the ranges that guidance scale,
    τ_c and τ_s are drawn from; both τ of a pair lie at the same place of their ranges. self_max_queries: see
    `EditOptions`. masks: a candidate for each: "none", "tight" (where the words that go have attention before the
    edit), "grown" (the same, enlarged) and "box" (its bounding box). mask_threshold: of the words' heat maps, see
    `threshold_mask`. grow: by how much "grown" is enlarged, as a share of the root of the mask's area. noises: how many
    noises the model's losses are measured at. keep: the pairs that are kept of each source and target, the best first.
    least: score -> what it must be at least; None asks nothing. Scores that are not named have the values of CLIP_LEAST
    or MODEL_LEAST. kinds: kind of an edit -> other values of OF_A_KIND for it.
    Raises ValueError.
    """

    seed: int = 0
    samples: int = 8
    steps: int | None = RunSettings.steps
    size: tuple[int, int] | None = RunSettings.size
    guidance: Range = (3.0, 6.0)
    cross_replace: Range = (0.1, 0.9)
    self_replace: Range = (0.1, 0.9)
    self_max_queries: int = EditOptions.self_max_queries
    masks: tuple[str, ...] = ("none",)
    mask_threshold: Any = "otsu"
    grow: float = 0.25
    noises: int = 8
    keep: int = 1
    least: Mapping[str, float | None] = field(default_factory=dict)
    kinds: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_seed(self.seed)
        check_max_queries(self.self_max_queries)
        check_threshold("mask_threshold", self.mask_threshold)
        for name in ("samples", "noises", "keep"):
            if not is_integer(getattr(self, name)) or getattr(self, name) < 1:
                raise ValueError(f"{name} must be a whole number from 1 on, not {getattr(self, name)!r}")
        for name, highest in (("guidance", None), ("cross_replace", 1.0), ("self_replace", 1.0)):
            check_range(name, getattr(self, name), highest)
        if not self.masks or (unknown := set(self.masks) - set(MASKS)) or len(set(self.masks)) < len(self.masks):
            wrong = f"not {sorted(unknown)[0]!r}" if self.masks and unknown else "each at most once"
            raise ValueError(f"masks are {', '.join(MASKS)}, at least one of them, {wrong}")
        if not is_finite(self.grow) or not 0 <= self.grow <= 4:
            raise ValueError(f"grow must lie between 0 and 4, and is {self.grow!r}")
        for name, value in self.least.items():
            if name not in SCORES:
                raise ValueError(f"least has no score {name!r}, only {', '.join(SCORES)}")
            if value is not None and not is_finite(value):
                raise ValueError(f"least must be a finite number for {name}, not {value!r}")
        for values in self.kinds.values():
            if wrong_names := sorted(values.keys() - set(OF_A_KIND)):
                raise ValueError(f"kinds of edits have no {wrong_names[0]}, only {', '.join(OF_A_KIND)}")
            replace(self, kinds={}, **values)  # checks them

    def of(self, kind: str) -> "PairSettings":
        """The settings for edits of a kind."""
        values = dict(self.kinds.get(kind, {}))
        return replace(self, kinds={}, **(values | {"least": {**self.least, **values.get("least", {})}}))

    def run(self, seed: int, guidance_scale: float) -> RunSettings:
        """The settings of a source's run."""
        return RunSettings(seed=seed, steps=self.steps, guidance_scale=guidance_scale, size=self.size)

    def thresholds(self, has_clip: bool) -> dict[str, float]:
        """What each score must be at least. Raises ValueError for a score that is not measured."""
        measured = {*(CLIP_SCORES if has_clip else MODEL_SCORES), "psnr"}
        values = {**(CLIP_LEAST if has_clip else MODEL_LEAST), **self.least}
        least = {name: value for name, value in values.items() if value is not None}
        if missing := sorted(least.keys() - measured):
            needed = "is measured without a CLIP" if has_clip else "needs a CLIP"
            raise ValueError(f"least has {missing[0]}, which {needed}")
        return least

    def as_dict(self) -> dict[str, Any]:
        """All values, as JSON has them."""
        return {each.name: getattr(self, each.name) for each in fields(self)}


def check_range(name: str, value: Any, highest: float | None) -> None:
    """Raises ValueError for what is not (low, high) with 0 <= low <= high <= highest."""
    valid = isinstance(value, tuple) and len(value) == 2 and all(map(is_finite, value)) and 0 <= value[0] <= value[1]
    if not valid or (highest is not None and value[1] > highest):
        limit = "" if highest is None else f" up to {highest:g}"
        raise ValueError(f"{name} is a range of numbers from 0 on{limit}, the lower first, and is {value!r}")


# InstructPix2Pix (Brooks et al. 2022), its published code: 100 samples of 100 steps, τ from U(.1, .9), guidance from
# U(7.5, 15), the best 4. There, τ is the share of the steps in which the self-attention, of all layers, is shared.
INSTRUCT_PIX2PIX = PairSettings(
    samples=100,
    steps=100,
    guidance=(7.5, 15.0),
    cross_replace=(0.0, 0.0),
    self_replace=(0.1, 0.9),
    self_max_queries=64 * 64,
    keep=4,
)
# After Emu Edit (Sheynin et al. 2023): masks before the edit, three candidates, and none where all may change.
EMU_EDIT = PairSettings(
    masks=("tight", "grown", "box"),
    kinds={"style": {"masks": ("none",), "least": {"psnr": None}}},
)
PRESETS: Mapping[str, PairSettings] = MappingProxyType({"instruct-pix2pix": INSTRUCT_PIX2PIX, "emu-edit": EMU_EDIT})


def passes(scores: Mapping[str, float | None], least: Mapping[str, float]) -> bool:
    """Whether scores reach their thresholds. One that could not be measured (None) does not count."""
    return all(scores[name] is None or scores[name] >= value for name, value in least.items())  # type: ignore[operator]


def best(scores: Iterable[Mapping[str, float | None]]) -> list[int]:
    """The numbers of candidates, the best first: by CLIP's direction, as published; or by what the model finds, the sum
    of its scores."""

    def value(row: Mapping[str, float | None]) -> float:
        names = ("clip_direction",) if row["clip_direction"] is not None else MODEL_SCORES
        return sum(row[name] or 0.0 for name in names)

    values = [value(row) for row in scores]
    return sorted(range(len(values)), key=lambda n: -values[n])
