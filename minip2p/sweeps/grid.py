"""The grid of a sweep: the axes that are compared, and each cell (one value of every axis) as the target of an edit."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from minip2p.attention.contract import SiteFilter
from minip2p.io.files import read_toml
from minip2p.p2p.local_blend import LocalBlend
from minip2p.p2p.options import EditOptions
from minip2p.p2p.targets import EditTarget, make_targets
from minip2p.pipeline import Pipeline
from minip2p.sampling.settings import RunSettings, RunStart
from minip2p.text.prompt import Prompt
from minip2p.validation import is_integer

# Every axis in the order of the table, with its value in a grid that does not name it.
AXES: Mapping[str, Any] = MappingProxyType(
    {
        "seed": RunSettings.seed,
        "target": None,
        "cross": EditOptions.cross_replace,
        "self": EditOptions.self_replace,
        "self_max_queries": EditOptions.self_max_queries,
        "reweight": {},
        "blend": "",
        "threshold": LocalBlend.threshold,
        "places": "all",
        "strides": "all",
        "indices": "all",
        "heads": "all",
    }
)

# Settings that all cells share: the name in a grid file, and the field of `RunSettings`.
RUN_OPTIONS: Mapping[str, str] = MappingProxyType(
    {
        "steps": "steps",
        "guidance": "guidance_scale",
        "negative": "negative_prompt",
        "size": "size",
        "guidance_interval": "guidance_interval",
        "uncond_every": "uncond_every",
    }
)


@dataclass(frozen=True)
class Grid:
    """The prompt that is edited, the values of each axis, and the settings that all cells share, as fields of
    `RunSettings`. split: how many jobs, at most, the cells of a seed are split into.
    """

    source: str
    axes: Mapping[str, Sequence[Any]]
    run_options: Mapping[str, Any]
    split: int = 1

    @classmethod
    def read(cls, path: Path) -> "Grid":
        """Reads a TOML file. Raises FileNotFoundError or ValueError with one line that names the file."""
        fields = read_toml(path)
        try:
            return cls.from_fields(fields)
        except ValueError as error:
            raise ValueError(f"{path}: {' '.join(str(error).split())}") from None

    @classmethod
    def from_fields(cls, fields: Mapping[str, Any]) -> "Grid":
        """Reads a mapping: `source`, a value or a list of values for each axis, settings of the run, and `split`.

        Raises ValueError for an unknown name, a missing source or target, an axis without values, a value that occurs
        twice, and a `split` that is not a whole number from 1 on.
        """
        known = ("source", *AXES, *RUN_OPTIONS, "split")
        if unknown := [name for name in fields if name not in known]:
            raise ValueError(f"a grid has no {unknown[0]!r}, only {', '.join(known)}")
        for name, content in (("source", "a prompt"), ("target", "a prompt, or a list of prompts")):
            if name not in fields:
                raise ValueError(f"a grid needs a {name}: {content}")
        axes = {}
        for name, default in AXES.items():
            values = fields.get(name, [default])
            axes[name] = values if isinstance(values, list) else [values]
            if not axes[name]:
                raise ValueError(f"{name} has no values")
            if repeated := [value for n, value in enumerate(axes[name]) if value in axes[name][:n]]:
                raise ValueError(f"{name} has {repeated[0]!r} twice")
        run_options = {option: to_tuples(fields[name]) for name, option in RUN_OPTIONS.items() if name in fields}
        split = fields.get("split", 1)
        if not is_integer(split) or split < 1:
            raise ValueError(f"split must be a whole number from 1 on, not {split!r}")
        return cls(fields["source"], axes, run_options, split)

    @property
    def compared(self) -> list[str]:
        """The axes with more than one value."""
        return [name for name, values in self.axes.items() if len(values) > 1]

    def cells(self, seed: Any) -> list[dict[str, Any]]:
        """Every combination of values with this seed, in the order of the table."""
        axes = dict(self.axes) | {"seed": [seed]}
        return [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]

    def as_dict(self) -> dict[str, Any]:
        """Everything that makes this grid another than the next."""
        split = {"split": self.split} if self.split > 1 else {}
        return {"source": self.source, **self.axes, **self.run_options, **split}


def make_target(pipe: Pipeline, start: RunStart, cell: Mapping[str, Any]) -> EditTarget:
    """A cell as the target of an edit.

    A cell without a blend still gets the mask of the words that differ: nothing is blended by it, and the figures are
    measured inside and outside of it. Raises ValueError for words, sites and heads that the prompts or the model do not
    have.
    """
    source, target = pipe.text.prompt(start.prompt), pipe.text.prompt(cell["target"])
    sites = SiteFilter(*(site_values(name, cell[name]) for name in ("places", "strides", "indices", "heads")))
    if not isinstance(cell["reweight"], Mapping):
        raise ValueError(f"reweight: each value is weights by word, as {{fog = 2.0}}, not {cell['reweight']!r}")
    options = EditOptions(
        cross_replace=to_tuples(cell["cross"]),
        self_replace=to_tuples(cell["self"]),
        self_max_queries=cell["self_max_queries"],
        reweight=cell["reweight"],
        local_blend=make_blend(cell, source, target),
        sites=sites,
    )
    return make_targets(pipe.components, start, [cell["target"]], options)[0]


def site_values(name: str, value: Any) -> tuple[Any, ...] | None:
    """The value of an axis of sites or heads, as `SiteFilter` takes it: None for "all". Raises ValueError."""
    if value == "all":
        return None
    if not isinstance(value, list) or not all(isinstance(item, str | int) for item in value):
        raise ValueError(f'{name}: each value is "all" or a list, not {value!r}')
    return tuple(value)


def to_tuples(value: Any) -> Any:
    """A value of a TOML file with tuples for its lists, in a table of values by word too."""
    if isinstance(value, Mapping):
        return {word: to_tuples(item) for word, item in value.items()}
    return tuple(value) if isinstance(value, list) else value


def make_blend(cell: Mapping[str, Any], source: Prompt, target: Prompt) -> LocalBlend | None:
    """The blend of a cell. For a cell without one: a blend that never begins, whose mask is of the words that differ or
    are re-weighted; None where there are no such words. Raises ValueError."""
    if not isinstance(cell["blend"], str):
        raise ValueError(f'blend: each value is a word, "word:word" or "", not {cell["blend"]!r}')
    threshold = to_tuples(cell["threshold"])
    if cell["blend"]:
        source_word, colon, target_word = cell["blend"].partition(":")
        return LocalBlend((source_word,), (target_word if colon else source_word,), threshold=threshold)
    source_words, target_words = ([word.text for word in prompt.visible_words] for prompt in (source, target))
    removed = [word for word in source_words if word not in target_words]
    added = [word for word in target_words if word not in source_words]
    added += [word for word in cell["reweight"] if word not in added]
    if not removed and not added:
        return None
    return LocalBlend(tuple(removed), tuple(added), threshold=threshold, start=1.0)


def label(value: Any) -> str:
    """A value of an axis as captions, charts and the table show it."""
    if isinstance(value, Mapping):
        return " ".join(f"{word}={label(item)}" for word, item in value.items()) or "none"
    if isinstance(value, list):
        return "+".join(map(label, value))
    return str(value) if value != "" else "none"
