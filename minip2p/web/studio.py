"""What the model does for the page: each function is the work of a job, and runs in the worker's thread.

Axes: H W pixels; t steps, c h w latents.
"""

import base64
import gzip
import io
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from minip2p.checkpoints.components import RowCounter
from minip2p.io.images import composite, fit_image, read_mask, to_pil
from minip2p.io.viz import mask_image
from minip2p.metrics.image import psnr
from minip2p.p2p.live import LiveEdits
from minip2p.p2p.options import EditOptions
from minip2p.p2p.places import find_place, place_masks
from minip2p.pipeline import Pipeline
from minip2p.sampling import metadata
from minip2p.sampling.preview import StepPreview
from minip2p.sampling.trajectory import Trajectory
from minip2p.web.limits import Limits
from minip2p.web.maps import collect_maps, pack_maps
from minip2p.web.places import place_json
from minip2p.web.recipes import PHOTO, Edited, Generated, Inverted, Recipe, edit_keywords
from minip2p.web.requests import Edit, Generation, Inversion
from minip2p.web.store import Photo, RunEntry, Shelf, new_id
from minip2p.web.words import words_json
from minip2p.web.worker import NOTES, Event, Job

PREVIEW_PAUSE = 2.0  # times the time that a preview takes: so long until the next, as a decoder may be slow


@dataclass
class Measured:
    """What a piece of work took. rows: of the UNet."""

    seconds: float = 0.0
    rows: int = 0


class Studio:
    """The model, and the runs that it has made.

    runs, photos: by their ids. maps: packed and compressed, by the ids of their runs. live: edits that share what they
    compute, by the ids of their sources.
    """

    def __init__(self, pipe: Pipeline, limits: Limits):
        self.counter, self.limits = RowCounter(), limits
        self.job: Job | None = None
        self.pipe = pipe.counting(self.counter).with_progress(self.progress)
        self.runs: Shelf[RunEntry] = Shelf(limits.runs)
        self.photos: Shelf[Photo] = Shelf(limits.photos)
        self.maps: Shelf[bytes] = Shelf(limits.maps)
        self.live: Shelf[LiveEdits] = Shelf(limits.sources)

    # --- jobs

    def generate(self, job: Job, request: Generation, preview: bool) -> Event:
        with self.at_work(job, "source") as measured:
            run = self.pipe.generate(
                request.prompt,
                seed=request.seed,
                steps=request.steps,
                guidance_scale=request.guidance,
                negative_prompt=request.negative,
                on_step=self.shower(preview),
            )
        return {"type": "result", "run": self.add_run(run, Generated(request), measured).json}

    def edit(self, job: Job, source: RunEntry, request: Edit, compare: bool, preview: bool) -> Event:
        plain = {}
        entry = self.edit_once(job, source, request, preview)
        if compare:
            plain["plain"] = self.edit_once(job, source, Edit(request.target, 0.0, 0.0), False, "plain").json
        is_recorded = self.live.get(source.json["id"]) is not None  # else it would have to run
        places = self.places(job, source, request) if is_recorded else {}
        return {"type": "result", "run": entry.json, "places": places, **plain}

    def invert(self, job: Job, photo: Photo, request: Inversion, preview: bool) -> Event:
        with self.at_work(job, "invert") as measured:
            job.preview = data_url(to_pil(photo.pixels)) if preview else None
            run = self.pipe.invert(
                to_pil(photo.pixels),
                request.prompt,
                method=request.method,
                steps=request.steps,
                guidance_scale=request.guidance,
            )
        entry = self.add_run(run, Inverted(request), measured, {PHOTO: photo.png}, photo.pixels)
        return {"type": "result", "run": entry.json}

    def grid(self, job: Job, source: RunEntry, cells: list[tuple[int, int, Edit]]) -> Event:
        """cells: the column, the row and the edit of each."""
        for n, (x, y, request) in enumerate(cells, 1):
            entry = self.edit_once(job, source, request, False, f"cell {n} of {len(cells)}")
            job.emit({"type": "cell", "x": x, "y": y, "run": entry.json})
        return {"type": "result", "run": source.json}

    def find_objects(self, job: Job, source: RunEntry, request: Edit) -> Event:
        return {"type": "result", "places": self.places(job, source, request)}

    def make_maps(self, job: Job, entry: RunEntry) -> Event:
        """The maps of a run, compressed."""
        packed = self.maps.get(entry.json["id"])
        if packed is None:
            with self.at_work(job, "maps"):
                tokens, blocks = collect_maps(entry.run, self.limits.map_bytes, self.progress)
            packed = gzip.compress(pack_maps(tokens, blocks), 4, mtime=0)
            self.maps.add(packed, entry.json["id"])
        return {"type": "result", "content": packed}

    def animate(self, job: Job, run: Trajectory) -> Event:
        """The run as an animated GIF."""
        with self.at_work(job, "animation"), TemporaryDirectory() as folder:
            file = Path(folder) / "run.gif"
            run.gif(file)
            return {"type": "result", "content": file.read_bytes()}

    # --- parts of them

    @contextmanager
    def at_work(self, job: Job, phase: str) -> Iterator[Measured]:
        """While the model works for a job. phase: what the job's steps are called."""
        self.job, job.phase, measured = job, phase, Measured()
        start, rows = time.perf_counter(), self.counter.rows
        try:
            yield measured
        finally:
            self.job = None
            measured.seconds, measured.rows = time.perf_counter() - start, self.counter.rows - rows

    def progress(self, steps: Iterable[Any]) -> Iterable[Any]:
        """The `Progress` of the pipeline: that of the job which runs."""
        return steps if self.job is None else self.job.steps(steps)

    def shower(self, preview: bool) -> Callable[[StepPreview], None] | None:
        """What shows the steps of the running job, if they are to be shown."""
        job, due = self.job, 0.0
        if not preview or job is None:
            return None

        def show(step: StepPreview) -> None:
            nonlocal due
            start = time.monotonic()
            if start >= due:
                job.preview = data_url(step.images[0])
                due = time.monotonic() + PREVIEW_PAUSE * (time.monotonic() - start)

        return show

    def edit_once(self, job: Job, source: RunEntry, request: Edit, preview: bool, phase: str = "edit") -> RunEntry:
        with self.at_work(job, phase) as measured:
            live = self.live_edits(job, source)
            options = {**edit_keywords(request), "on_step": self.shower(preview)}
            if live is None:
                run = self.pipe.edit(source.run, request.target, **options)
            else:
                run = live.edit(request.target, **options)
        recipe = Edited(request, source.recipe)
        files = {name: source.files[name] for name in source.recipe.file_names}
        if request.region is not None:
            files[recipe.region_name] = png_bytes(request.region)
        return self.add_run(run, recipe, measured, files, source.original, source)

    def places(self, job: Job, source: RunEntry, request: Edit) -> dict[str, Any]:
        """Where the objects of an edit are in its source, by their words."""
        if not request.objects:
            return {}
        with self.at_work(job, "place"):
            live = self.live_edits(job, source)
            find = partial(find_place, self.pipe.components, source.run) if live is None else live.find_place
            options = EditOptions(**edit_keywords(request))
            masks = place_masks(self.pipe.components, source.run, options, find)
            by_word = {item.word: mask for item, mask in zip(options.objects, masks, strict=True)}
            return {each.word: place_json(each.word, by_word[each.word]) for each in request.objects}

    def live_edits(self, job: Job, source: RunEntry) -> LiveEdits | None:
        """The edits of a source, which is recorded the first time. None where the record would take too much memory."""
        live = self.live.get(source.json["id"])
        if live is None:
            phase, job.phase = job.phase, "record"
            try:
                live = self.pipe.live(source.run, budget=self.limits.record_bytes)
            except ValueError as error:
                if "budget" not in str(error):
                    raise
                return None
            finally:
                job.phase = phase
            self.live.add(live, source.json["id"])
        return live

    def add_run(
        self,
        run: Trajectory,
        recipe: Recipe,
        measured: Measured,
        files: Mapping[str, bytes] = MappingProxyType({}),
        original: Tensor | None = None,
        source: RunEntry | None = None,
    ) -> RunEntry:
        """Puts a run on the shelf, with its picture. files: that its recipe reads. source: of an edit."""
        picture, run_id = run.picture, new_id()
        error = psnr(picture, original) if isinstance(recipe, Inverted) and original is not None else None
        if source is not None and isinstance(recipe, Edited) and recipe.request.paste:
            picture = paste(run, recipe, picture, source)
        files = {**files, "picture.png": png_bytes(to_pil(picture), metadata.parameters(run, **recipe.png_settings()))}
        if run.blend_mask is not None:
            files["mask.png"] = png_bytes(mask_image(run.blend_mask, run.picture_size[::-1]))
        urls = {
            key: f"/api/run/{run_id}/{key}.png" if f"{key}.png" in files else None
            for key in ("picture", "original", "mask")
        }
        entry_json = {
            "id": run_id,
            "kind": recipe.kind,
            "prompt": run.prompt,
            "words": words_json(run.components.text.prompt(run.prompt)),
            "size": [*run.picture_size],
            "seed": run.seed,
            "steps": run.steps,
            "guidance": run.guidance_scale,
            "negative": run.negative_prompt,
            "source": None if source is None else source.json["id"],
            "method": run.inversion or None,
            "psnr": error,
            "seconds": round(measured.seconds, 3),
            "rows": measured.rows,
            "notes": list(dict.fromkeys(NOTES.get() or ())),
            **urls,
        }
        run = replace(run, source_run=None)  # its latents are not needed any more
        entry = RunEntry(run, recipe, entry_json, files, original)
        self.runs.add(entry, run_id)
        return entry


def paste(run: Trajectory, recipe: Edited, picture: Tensor, source: RunEntry) -> Tensor:
    """The picture of an edit with the pixels of the photograph, or of the source's picture, outside of the mask."""
    request = recipe.request
    is_photo = isinstance(recipe.source, Inverted) and source.original is not None
    original = source.original if is_photo else source.run.picture
    mask = run.blend_mask
    if request.blend is None:
        assert request.region is not None
        mask = read_mask(request.region) >= 0.5
    assert original is not None and mask is not None
    return composite(picture, original, mask)


def read_photo(image: Image.Image, size: tuple[int, int]) -> Photo:
    """A photograph in the size that the model takes (rows, columns)."""
    pixels = fit_image(image, size)
    return Photo(pixels, png_bytes(to_pil(pixels)))


def png_bytes(image: Image.Image, parameters: str | None = None) -> bytes:
    """A picture as a PNG file. parameters: its settings."""
    info = PngInfo()
    if parameters is not None:
        info.add_text("parameters", parameters)
    file = io.BytesIO()
    image.save(file, "PNG", pnginfo=info)
    return file.getvalue()


def data_url(image: Image.Image) -> str:
    """A picture in a URL, small."""
    file = io.BytesIO()
    image.save(file, "WEBP", quality=80)
    return f"data:image/webp;base64,{base64.b64encode(file.getvalue()).decode()}"
