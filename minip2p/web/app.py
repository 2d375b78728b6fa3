"""The addresses of the server, and the answer to each."""

import asyncio
import gzip
import io
import json
import mimetypes
import warnings
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from PIL import Image
from starlette.applications import Starlette
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import Receive, Scope, Send

from minip2p.errors import Notice
from minip2p.inversion.methods import METHODS
from minip2p.io.images import read_image
from minip2p.io.png import read_parameters
from minip2p.io.viz import heat_colours
from minip2p.p2p.options import EditOptions
from minip2p.pipeline import Pipeline
from minip2p.sampling import metadata
from minip2p.web.fields import parse_json
from minip2p.web.guard import Access, Guard, error_response
from minip2p.web.limits import Limits
from minip2p.web.png_settings import parse_parameters
from minip2p.web.recipes import SOURCE_RUN, ModelSource, command_text, python_text
from minip2p.web.requests import Edit, Generation, Inversion, read_alignment, read_grid, run_of
from minip2p.web.store import Photo, RunEntry, Shelf
from minip2p.web.studio import Studio, png_bytes, read_photo
from minip2p.web.words import align, own_tokenizer
from minip2p.web.worker import NOTES, Event, Job, JobCancelled, QueueFull, Worker

STATIC = Path(__file__).parent / "static"
METHOD_LABELS = (
    ("direct", "direct: keeps the encoded photograph"),
    ("ddim", "DDIM: the baseline"),
    ("negative-prompt", "negative-prompt: quick"),
    ("proximal", "proximal: cautious"),
    ("null-text", "null-text: slow"),
    ("edit-friendly", "edit-friendly: DDPM"),
    ("virtual", "virtual: no inversion"),
)
# Edits that the model that ships does well.
EXAMPLES = (
    {"prompt": "a pig on the grass", "seed": 1, "target": "a sheep on the grass", "blend": None},
    {
        "prompt": "a red car on the street",
        "seed": 5,
        "target": "a blue car on the street",
        "blend": {"source": ["car"], "target": ["car"]},
    },
    {"prompt": "a red car on the street", "seed": 5, "target": "a red car on the street in the fog", "blend": None},
    {
        "prompt": "a photo of a tiger in the meadow",
        "seed": 3,
        "target": "a watercolor of a tiger in the meadow",
        "blend": None,
    },
)
LOOK_SECONDS = 0.2  # between two looks whether a client is still there
DIFFERENCE_SCALE = 2.0  # half of the range of a colour is as bright as can be
mimetypes.add_type("text/javascript", ".js")  # which Windows may call something else


class Site:
    """The server's state, and a function for each address."""

    def __init__(self, pipe: Pipeline, limits: Limits, model: ModelSource):
        self.limits, self.model = limits, model
        self.studio = Studio(pipe, limits)
        self.worker = Worker(limits.queue)
        self.text = own_tokenizer(pipe.text)
        self.uploads = asyncio.Lock()
        self.facts = model_facts(pipe, limits)

    def routes(self) -> list[BaseRoute]:
        run = "/api/run/{run}"
        return [
            Route("/", self.page),
            Mount("/static", StaticFiles(directory=STATIC)),
            Route("/api/model", self.describe),
            Route("/api/photo", self.photo, methods=["POST"]),
            Route("/api/photo/{photo}.png", self.photo_picture),
            Route("/api/settings", self.settings, methods=["POST"]),
            Route("/api/align", self.align, methods=["POST"]),
            Route("/api/generate", self.generate, methods=["POST"]),
            Route("/api/edit", self.edit, methods=["POST"]),
            Route("/api/places", self.places, methods=["POST"]),
            Route("/api/invert", self.invert, methods=["POST"]),
            Route("/api/grid", self.grid, methods=["POST"]),
            Route(run, self.run),
            Route(f"{run}/difference.png", self.difference),
            Route(f"{run}/maps", self.maps),
            Route(f"{run}/animation.gif", self.animation),
            Route(f"{run}/run.safetensors", self.run_file),
            Route(f"{run}/recipe", self.recipe),
            Route(f"{run}/{{file}}", self.file),
        ]

    @asynccontextmanager
    async def lifespan(self, app: Starlette) -> AsyncIterator[None]:
        with warnings.catch_warnings(), collected_notices():
            try:
                yield
            finally:
                self.worker.close()
                await asyncio.to_thread(self.worker.thread.shutdown)

    # --- the page

    async def page(self, request: Request) -> Response:
        return FileResponse(STATIC / "index.html")

    async def describe(self, request: Request) -> Response:
        return JSONResponse(self.facts)

    async def align(self, request: Request) -> Response:
        return JSONResponse(align(self.text, *read_alignment(await json_body(request), self.limits)))

    # --- files that are dropped on the page

    async def photo(self, request: Request) -> Response:
        def read(file: Path) -> tuple[Photo, list[str]]:
            NOTES.set([])
            components = self.studio.pipe.components
            rows, columns = (side * components.vae.stride for side in components.latent_size(None))
            return read_photo(read_image(file, max_pixels=self.limits.photo_pixels), (rows, columns)), NOTES.get() or []

        photo, notes = await self.read_upload(request, read)
        photo_id = self.studio.photos.add(photo)
        size = list(photo.pixels.shape[1:])
        url = f"/api/photo/{photo_id}.png"
        return JSONResponse({"photo": photo_id, "size": size, "picture": url, "notes": notes})

    async def photo_picture(self, request: Request) -> Response:
        photo = get(self.studio.photos, request.path_params["photo"], "photograph")
        return Response(photo.png, media_type="image/png")

    async def settings(self, request: Request) -> Response:
        def read(file: Path) -> dict[str, Any]:
            return parse_parameters(read_parameters(file, max_pixels=self.limits.photo_pixels))

        return JSONResponse({"settings": await self.read_upload(request, read)})

    async def read_upload(self, request: Request, read: Callable[[Path], Any]) -> Any:
        """Reads the file of a form by a function that takes its path, in a thread; one file at a time."""
        if media_type(request) != "multipart/form-data":
            raise HTTPException(415, "the request must be multipart/form-data with a file")
        async with request.form(max_files=1, max_fields=0) as form:
            upload = form.get("file")
            if not isinstance(upload, UploadFile):
                raise ValueError("the form has no file")

            def work() -> Any:
                with TemporaryDirectory() as folder:
                    file = Path(folder) / "upload"  # not the name that the client gave it
                    with file.open("wb") as copy:
                        while piece := upload.file.read(2**20):
                            copy.write(piece)
                    try:
                        return read(file)
                    except ValueError as error:
                        raise ValueError(str(error).replace(str(file), "the file")) from None

            async with self.uploads:
                return await asyncio.to_thread(work)

    # --- what the model does

    async def generate(self, request: Request) -> Response:
        wanted, preview = Generation.read(await json_body(request), self.limits)
        return self.stream(lambda job: self.studio.generate(job, wanted, preview))

    async def edit(self, request: Request) -> Response:
        body = await json_body(request)
        source = self.source(body)
        wanted, compare, preview = Edit.read(body, self.limits, source.run.picture_size)
        return self.stream(lambda job: self.studio.edit(job, source, wanted, compare, preview))

    async def places(self, request: Request) -> Response:
        body = await json_body(request)
        source = self.source(body)
        wanted, *_ = Edit.read(body, self.limits, source.run.picture_size)
        return self.stream(lambda job: self.studio.find_objects(job, source, wanted))

    async def invert(self, request: Request) -> Response:
        wanted, photo_id, preview = Inversion.read(await json_body(request), self.limits)
        photo = get(self.studio.photos, photo_id, "photograph")
        return self.stream(lambda job: self.studio.invert(job, photo, wanted, preview))

    async def grid(self, request: Request) -> Response:
        body = await json_body(request)
        source = self.source(body)
        cells = read_grid(body, self.limits, source.run.picture_size)
        return self.stream(lambda job: self.studio.grid(job, source, cells))

    def source(self, body: Any) -> RunEntry:
        """The run that an edit is about."""
        entry: RunEntry = get(self.studio.runs, run_of(body), "run")
        if entry.recipe.level >= self.limits.edits:
            raise ValueError(f"this is the edit of an edit, {self.limits.edits} times over: begin with a new picture")
        return entry

    def submit(self, work: Callable[[Job], Event]) -> Job:
        job = Job(work)
        self.worker.submit(job)
        return job

    def stream(self, work: Callable[[Job], Event]) -> Response:
        return JobStream(self.submit(work), self.worker)

    async def content(self, request: Request, work: Callable[[Job], Event]) -> bytes:
        """The bytes that a job makes, for a client that waits for them."""
        job = self.submit(work)
        result = asyncio.ensure_future(job.result())
        try:
            while not (await asyncio.wait([result], timeout=LOOK_SECONDS))[0]:
                if await request.is_disconnected():
                    raise ClientDisconnect
        finally:
            self.worker.cancel(job)
            result.cancel()
        event = result.result()
        if event["type"] == "error":
            raise ValueError(event["error"])
        return bytes(event["content"])

    # --- what there is of a run

    def entry(self, request: Request) -> RunEntry:
        return get(self.studio.runs, request.path_params["run"], "run")

    async def run(self, request: Request) -> Response:
        """The run again, and its settings as those of its PNG."""
        entry = self.entry(request)
        settings = parse_parameters(metadata.parameters(entry.run, **entry.recipe.png_settings()))
        return JSONResponse({"run": entry.json, "settings": settings})

    async def file(self, request: Request) -> Response:
        """A picture of the run, or one that its recipe reads."""
        content = self.entry(request).files.get(request.path_params["file"])
        if content is None:
            raise HTTPException(404, "the run has no such file")
        return Response(content, media_type="image/png")

    async def difference(self, request: Request) -> Response:
        """How much two pictures differ at each pixel, mean over the colours."""
        other = get(self.studio.runs, request.query_params.get("to", ""), "run to compare with")
        pictures = [entry.files["picture.png"] for entry in (self.entry(request), other)]
        return Response(await asyncio.to_thread(difference_png, *pictures), media_type="image/png")

    async def maps(self, request: Request) -> Response:
        entry = self.entry(request)
        packed = self.studio.maps.get(entry.json["id"])
        if packed is None:
            packed = await self.content(request, lambda job: self.studio.make_maps(job, entry))
        headers = {"vary": "accept-encoding"}
        if "gzip" in request.headers.get("accept-encoding", ""):
            headers["content-encoding"] = "gzip"
        else:
            packed = await asyncio.to_thread(gzip.decompress, packed)
        return Response(packed, media_type="application/octet-stream", headers=headers)

    async def animation(self, request: Request) -> Response:
        run = self.entry(request).run
        content = await self.content(request, lambda job: self.studio.animate(job, run))
        return Response(content, media_type="image/gif")

    async def run_file(self, request: Request) -> Response:
        content = await asyncio.to_thread(run_file_bytes, self.entry(request))
        return Response(content, media_type="application/octet-stream")

    async def recipe(self, request: Request) -> Response:
        entry = self.entry(request)
        recipe = entry.recipe
        command = command_text(recipe, self.model)
        files = [{"name": name, "url": f"/api/run/{entry.json['id']}/{name}"} for name in recipe.file_names]
        if command is not None and SOURCE_RUN in command:
            files.append({"name": SOURCE_RUN, "url": f"/api/run/{entry.json['source']}/run.safetensors"})
        return JSONResponse({"python": python_text(recipe, self.model), "command": command, "files": files})


class JobStream(StreamingResponse):
    """The events of a job as server-sent events. The job is cancelled when the client leaves."""

    def __init__(self, job: Job, worker: Worker):
        self.job, self.worker = job, worker
        super().__init__(self.lines(), media_type="text/event-stream")

    async def lines(self) -> AsyncIterator[str]:
        async for event in self.job.events():
            yield f"data: {json.dumps(dict(event))}\n\n"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self.worker.cancel(self.job)


def get(shelf: Shelf[Any], name: str, what: str) -> Any:
    """A value by its id. Raises HTTPException where there is none."""
    value = shelf.get(name)
    if value is None:
        raise HTTPException(404, f"there is no such {what}: the server forgets those that were not used for long")
    return value


def media_type(request: Request) -> str:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


async def json_body(request: Request) -> Any:
    """The JSON of a request. Raises ValueError and HTTPException."""
    if media_type(request) != "application/json":
        raise HTTPException(415, "the request must be application/json")
    return parse_json(await request.body())


def difference_png(a: bytes, b: bytes) -> bytes:
    """Raises ValueError for pictures of different sizes."""
    first, second = (np.asarray(Image.open(io.BytesIO(file)), dtype=float) for file in (a, b))
    if first.shape != second.shape:
        raise ValueError("the pictures have different sizes")
    difference = np.abs(first - second).mean(-1) / 255
    return png_bytes(Image.fromarray(heat_colours((DIFFERENCE_SCALE * difference).clip(0, 1))))


def run_file_bytes(entry: RunEntry) -> bytes:
    with TemporaryDirectory() as folder:
        file = Path(folder) / "run.safetensors"
        entry.run.save(file)
        return file.read_bytes()


def model_facts(pipe: Pipeline, limits: Limits) -> dict[str, Any]:
    """What the page is told of the model."""
    components, known = pipe.components, pipe.text.known_words
    return {
        "version": import_module("minip2p").__version__,
        "name": pipe.origin.labels.get("Model", "a model"),
        "size": [side * components.vae.stride for side in components.latent_size(None)],
        "guidance": pipe.default_guidance,
        "words": sorted(known) or None,
        "methods": [{"name": name, "label": dict(METHOD_LABELS)[name]} for name in METHODS],
        "defaults": {
            "steps": pipe.scheduler.default_steps,
            "few_steps": pipe.scheduler.few_steps,
            "cross": EditOptions.cross_replace,
            "self": EditOptions.self_replace,
        },
        "limits": {"steps": limits.steps},
        "examples": list(EXAMPLES) if known else [],
    }


@contextmanager
def collected_notices() -> Iterator[None]:
    """Warnings of the library go to the job, or the request, in whose thread they are raised."""
    warnings.simplefilter("always", Notice)
    printer = warnings.showwarning

    def show(
        message: Warning | str, category: type[Warning], filename: str, lineno: int, *rest: Any, **more: Any
    ) -> None:
        notes = NOTES.get()
        if notes is not None and issubclass(category, Notice):
            notes.append(str(message))
        elif not issubclass(category, Notice):
            printer(message, category, filename, lineno, *rest, **more)

    warnings.showwarning = show
    try:
        yield
    finally:
        warnings.showwarning = printer


def make_app(
    pipe: Pipeline,
    access: Access | None = None,
    limits: Limits | None = None,
    model: ModelSource | None = None,
) -> Starlette:
    """The server for a model. access: who may use it; only this computer by default. model: how `pipe` was loaded."""
    limits = limits or Limits()
    site = Site(pipe, limits, model or ModelSource())

    def answer(request: Request, error: Exception) -> Response:
        match error:
            case HTTPException():
                return error_response(error.status_code, str(error.detail))
            case ValueError():
                return error_response(400, str(error))
            case QueueFull():
                return error_response(503, str(error), position=error.position)
            case JobCancelled():
                return error_response(503, "the server stops")
            case ClientDisconnect():
                return Response(status_code=400)
        return error_response(500, f"the server has failed ({type(error).__name__}); its terminal says more")

    body_limits = {"": limits.json_bytes}
    body_limits |= dict.fromkeys(("/api/photo", "/api/settings"), limits.photo_bytes)
    app = Starlette(
        routes=site.routes(),
        middleware=[Middleware(Guard, access or Access(), body_limits, limits.body_seconds)],
        exception_handlers=dict.fromkeys(
            (HTTPException, ValueError, QueueFull, JobCancelled, ClientDisconnect, Exception), answer
        ),
        lifespan=site.lifespan,
    )
    app.router.redirect_slashes = False
    app.state.site = site
    return app
