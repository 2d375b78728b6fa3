"""What a sweep compares: the axes of a grid, and each of its cells as the target of an edit."""

import itertools
import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from minip2p.attention.contract import SiteFilter
from minip2p.p2p.edit_plan import plan_edit
from minip2p.p2p.local_blend import LocalBlend, LocalBlendState
from minip2p.p2p.targets import EditTarget
from minip2p.pipeline import Pipeline
from minip2p.sampling.settings import RunSettings
from minip2p.text.prompt import Prompt
from minip2p.validation import is_integer

# What can be compared, in the order of the table, with the value of an edit that says nothing of it.
AXES: Mapping[str, Any] = MappingProxyType(
    {
        "seed": 0,
        "target": None,
        "cross": 0.8,
        "self": 0.4,
        "self_pixels": 32 * 32,
        "reweight": {},
        "blend": "",
        "threshold": 0.3,
        "places": "all",
        "strides": "all",
        "indices": "all",
        "heads": "all",
    }
)


RUN_FIELDS = ("steps", "guidance", "negative", "size")  # what all cells have in common, as `generate` takes it


@dataclass(frozen=True)
class Grid:
    """What is compared: the values of each axis; and what all cells have in common."""

    source: str
    axes: Mapping[str, Sequence[Any]]
    run_options: Mapping[str, Any]

    @classmethod
    def read(cls, path: Path) -> "Grid":
        """From a TOML file. Raises FileNotFoundError or ValueError with one line that names the file."""
        if not path.is_file():
            raise FileNotFoundError(f"{path}: {'a folder, not a file' if path.exists() else 'no such file'}")
        try:
            return cls.from_fields(tomllib.loads(path.read_text(encoding="utf-8")))
        except (ValueError, UnicodeDecodeError) as error:
            raise ValueError(f"{path}: {' '.join(str(error).split())}") from None

    @classmethod
    def from_fields(cls, fields: Mapping[str, Any]) -> "Grid":
        """From a mapping: `source`, a list of values for each axis that is compared, and settings of the run. Raises
        ValueError for a name that is not known and for an axis without values."""
        known = ("source", *AXES, *RUN_FIELDS)
        if unknown := [name for name in fields if name not in known]:
            raise ValueError(f"a grid has no {unknown[0]!r}, only {', '.join(known)}")
        for name in ("source", "target"):
            if name not in fields:
                raise ValueError(f"a grid needs a {name}: a prompt" + ("" if name == "source" else ", or several"))
        axes = {}
        for name, default in AXES.items():
            values = fields.get(name, [default])
            axes[name] = values if isinstance(values, list) else [values]
            if not axes[name]:
                raise ValueError(f"{name} has no values")
            if twice := [value for n, value in enumerate(axes[name]) if value in axes[name][:n]]:
                raise ValueError(f"{name} has {twice[0]!r} twice")
        return cls(fields["source"], axes, {name: fields[name] for name in RUN_FIELDS if name in fields})

    @property
    def compared(self) -> list[str]:
        """The axes with more than one value."""
        return [name for name, values in self.axes.items() if len(values) > 1]

    def cells(self, seed: Any) -> list[dict[str, Any]]:
        """Every combination of a seed, in the order of the table."""
        axes = dict(self.axes) | {"seed": [seed]}
        return [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]

    @property
    def text(self) -> str:
        return json.dumps({"source": self.source, **self.axes, **self.run_options}, sort_keys=True)


def make_target(model: Pipeline, start: RunSettings, cell: Mapping[str, Any]) -> EditTarget:
    """A cell as the target of an edit. Where it is not blended its mask is seen all the same, to measure by: the places
    of the words that differ. Raises ValueError for what the prompts or the model do not have."""
    old, new = model.text.prompt(start.prompt), model.text.prompt(cell["target"])
    where = SiteFilter(*(site_values(name, cell[name]) for name in ("places", "strides", "indices", "heads")))
    where.validate(model.unet.heads)
    if not isinstance(cell["reweight"], Mapping):
        raise ValueError(f"reweight: each value is weights by word, as {{fog = 2.0}}, not {cell['reweight']!r}")
    if not is_integer(cell["self_pixels"]):
        raise ValueError(f"self_pixels: each value is a whole number, not {cell['self_pixels']!r}")
    plan = plan_edit(
        old,
        new,
        start.steps,
        cross_replace=to_tuples(cell["cross"]),
        self_replace=to_tuples(cell["self"]),
        self_max_queries=cell["self_pixels"],
        reweight=cell["reweight"],
        sites=where,
    )
    blend = make_blend(cell, old, new)
    if blend is None:
        return EditTarget(cell["target"], plan)
    size = start.noise.shape[-2], start.noise.shape[-1]
    return EditTarget(cell["target"], plan, LocalBlendState.start(blend, old, new, start.steps, size, model.unet.sites))


def site_values(name: str, value: Any) -> tuple[Any, ...] | None:
    """What an axis of sites or heads says, as `Where` takes it. Raises ValueError."""
    if value != "all" and not (isinstance(value, list) and all(isinstance(one, str | int) for one in value)):
        raise ValueError(f'{name}: each value is "all" or a list, not {value!r}')
    return None if value == "all" else tuple(value)


def to_tuples(share: Any) -> Any:
    """(start, end) for a list of two, by word too."""
    if isinstance(share, Mapping):
        return {word: to_tuples(value) for word, value in share.items()}
    return tuple(share) if isinstance(share, list) else share


def make_blend(cell: Mapping[str, Any], old: Prompt, new: Prompt) -> LocalBlend | None:
    """The blend of a cell; without one, a blend that never blends, of the words that differ or are re-weighted."""
    if not isinstance(cell["blend"], str):
        raise ValueError(f'blend: each value is a word, "word:word" or "", not {cell["blend"]!r}')
    if cell["blend"]:
        source, sign, target = cell["blend"].partition(":")
        return LocalBlend((source,), (target if sign else source,), threshold=to_tuples(cell["threshold"]))
    texts = [[word.text for word in prompt.visible_words] for prompt in (old, new)]
    gone, come = ([word for word in one if word not in other] for one, other in (texts, texts[::-1]))
    come += [word for word in cell["reweight"] if word not in come]
    return (
        LocalBlend(tuple(gone), tuple(come), threshold=to_tuples(cell["threshold"]), start=1.0)
        if gone or come
        else None
    )


def label(value: Any) -> str:
    """A value of an axis as one says it."""
    if isinstance(value, Mapping):
        return " ".join(f"{word}={label(one)}" for word, one in value.items()) or "none"
    if isinstance(value, list):
        return "+".join(map(label, value))
    return str(value) if value != "" else "none"
