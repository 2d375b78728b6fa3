"""A static copy of the page with precomputed examples: any web server can host it, without Python."""

import asyncio
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from minip2p.io.files import atomic_folder
from minip2p.pipeline import Pipeline
from minip2p.web.app import EXAMPLES, STATIC, model_facts
from minip2p.web.limits import Limits
from minip2p.web.maps import collect_maps, pack_maps
from minip2p.web.recipes import ModelSource, command_text, python_text
from minip2p.web.requests import Blend, Edit, Generation
from minip2p.web.store import RunEntry
from minip2p.web.studio import Studio
from minip2p.web.words import align
from minip2p.web.worker import Job

CROSS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)  # τ of the edits that are computed
SELF = (0.0, 0.4, 0.8)
SOURCE_MAP_BYTES = 2_000_000
EDIT_MAP_BYTES = 20_000
MARKER = '<link rel="icon"'


def export_page(
    pipe: Pipeline, folder: Path, model: ModelSource, *, steps: int = 50, report: Callable[[str], None] = print
) -> None:
    """Writes the page with examples into a new folder, complete or not at all: index.html, static/ and data/.

    For each of `EXAMPLES` it has the source with all of its maps, the picture of the target's prompt alone, and the
    edits at τ of `CROSS` and `SELF` with the mean of their maps. report: is told of each example.
    Raises FileExistsError.
    """
    with atomic_folder(folder) as partial:
        partial.mkdir()
        shutil.copytree(STATIC, partial / "static", ignore=shutil.ignore_patterns("index.html"))
        page = (STATIC / "index.html").read_text(encoding="utf-8")
        meta = '<meta name="minip2p-data" content="data/index.json">\n'
        (partial / "index.html").write_text(page.replace(MARKER, meta + MARKER, 1), encoding="utf-8")
        (partial / "data").mkdir()
        exporter = Exporter(pipe, partial / "data", model, steps)
        examples = []
        for n, example in enumerate(EXAMPLES):
            report(f"{n + 1} of {len(EXAMPLES)}: {example['prompt']} -> {example['target']}")
            examples.append(asyncio.run(exporter.example(n, example)))
        index = {"model": model_facts(pipe, Limits()), "examples": examples}
        (partial / "data" / "index.json").write_text(json.dumps(index), encoding="utf-8")


class Exporter:
    """Makes the files of the examples in `data`."""

    def __init__(self, pipe: Pipeline, data: Path, model: ModelSource, steps: int):
        self.studio, self.data, self.model, self.steps = Studio(pipe, Limits()), data, model, steps

    async def example(self, number: int, example: dict[str, Any]) -> dict[str, Any]:
        """What the page reads of an example. It runs in an event loop only because jobs belong to one."""
        studio, job = self.studio, Job(lambda job: {})
        request = Generation(example["prompt"], example["seed"], self.steps, None, "")
        source = studio.runs.get(studio.generate(job, request, False)["run"]["id"])
        assert source is not None
        blend = example["blend"] and Blend(tuple(example["blend"]["source"]), tuple(example["blend"]["target"]))

        def edit(name: str, cross: float, self_: float, blend: Blend | None) -> dict[str, Any]:
            entry = studio.edit_once(job, source, Edit(example["target"], cross, self_, blend=blend), False)
            return self.write(f"{number}-{name}", entry, EDIT_MAP_BYTES)

        runs = [
            [edit(f"{j}-{i}", cross, self_, blend) for i, cross in enumerate(CROSS)] for j, self_ in enumerate(SELF)
        ]
        return {
            "target": example["target"],
            "align": align(studio.pipe.text, example["prompt"], example["target"]),
            "source": self.write(f"{number}-source", source, SOURCE_MAP_BYTES),
            "plain": edit("plain", 0.0, 0.0, None),
            "edits": {"cross": CROSS, "self": SELF, "runs": runs},
        }

    def write(self, name: str, entry: RunEntry, map_bytes: int) -> dict[str, Any]:
        """Writes the picture, the mask and the maps of a run. Returns what the page reads of it."""
        (self.data / f"{name}.png").write_bytes(entry.files["picture.png"])
        if has_mask := "mask.png" in entry.files:
            (self.data / f"{name}-mask.png").write_bytes(entry.files["mask.png"])
        tokens, blocks = collect_maps(entry.run, map_bytes)
        (self.data / f"{name}.bin").write_bytes(pack_maps(tokens, blocks))
        recipe = {"python": python_text(entry.recipe, self.model), "command": command_text(entry.recipe, self.model)}
        files = {
            "picture": f"{name}.png",
            "mask": f"{name}-mask.png" if has_mask else None,
            "maps": f"{name}.bin",
        }
        return {**entry.json, **files, "original": None, "recipe": recipe}
