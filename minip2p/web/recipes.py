"""How a run was made, as settings, as Python, and as a command line: each of them makes exactly the same picture.

A recipe of an edit contains that of its source, so it does not depend on what the server still remembers.
"""

import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from minip2p.p2p.local_blend import LocalBlend
from minip2p.web.requests import Blend, Edit, Generation, Inversion, ObjectChange

# The names of files that Python and the command line read.
PHOTO, SOURCE_RUN = "original.png", "source.safetensors"


@dataclass(frozen=True)
class ModelSource:
    """How the server's model was loaded. python: the lines that bind `pipe`. options: of the command line."""

    python: tuple[str, ...] = ("pipe = minip2p.load()",)
    options: tuple[str, ...] = ()


@dataclass(frozen=True)
class Generated:
    """A run from a prompt."""

    request: Generation
    kind = "generated"
    source = None
    level = 0
    file_names = ()

    def png_settings(self) -> dict[str, Any]:
        """The settings of the PNG besides those of the run, as the command line writes them."""
        return {}

    def python(self, name: str, source: str) -> Iterator[str]:
        request = self.request
        options: dict[str, Any] = {"seed": request.seed, "steps": request.steps, "guidance_scale": request.guidance}
        options |= {"negative_prompt": request.negative} if request.negative else {}
        yield f"{name} = pipe.generate({request.prompt!r}{keywords(options)})"

    def command(self, model: ModelSource) -> list[str] | None:
        request = self.request
        words = ["generate", f"--seed={request.seed}", *run_options(request.steps, request.guidance)]
        words += [f"--negative={request.negative}"] if request.negative else []
        return [*words, *model.options, "-o", "picture.png", *positional(request.prompt)]


@dataclass(frozen=True)
class Inverted:
    """A run from a photograph."""

    request: Inversion
    kind = "photo"
    source = None
    level = 0
    file_names = (PHOTO,)

    def png_settings(self) -> dict[str, Any]:
        return {}

    def python(self, name: str, source: str) -> Iterator[str]:
        request = self.request
        options = {"method": request.method, "steps": request.steps, "guidance_scale": request.guidance}
        yield f"{name} = pipe.invert({PHOTO!r}, {request.prompt!r}{keywords(options)})"

    def command(self, model: ModelSource) -> list[str] | None:
        request = self.request
        words = ["invert", f"--method={request.method}", *run_options(request.steps, request.guidance)]
        return [*words, *model.options, "-o", "picture.safetensors", *positional(PHOTO, request.prompt)]


@dataclass(frozen=True)
class Edited:
    """An edit of another recipe."""

    request: Edit
    source: "Recipe"
    kind = "edited"

    @property
    def level(self) -> int:
        """How many edits it takes, itself among them."""
        return self.source.level + 1

    @property
    def region_name(self) -> str:
        return "region.png" if self.level == 1 else f"region-{self.level}.png"

    @property
    def file_names(self) -> tuple[str, ...]:
        """The files that its Python reads."""
        return *self.source.file_names, *([] if self.request.region is None else [self.region_name])

    def png_settings(self) -> dict[str, Any]:
        request, blend = self.request, self.request.blend
        values = {
            "Cross": f"{request.cross}",
            "Self": f"{request.self_}",
            "Kind": "auto",
            "Reweight": ", ".join(f"{word}={weight}" for word, weight in request.weights),
            "Blend": None if blend is None else f"{', '.join(blend.source)}:{', '.join(blend.target)}",
            "Threshold": None if blend is None or blend.threshold is None else f"{blend.threshold}",
            "Mask": self.region_name if request.region is not None and blend is None else None,
            "Within": self.region_name if request.region is not None else None,
            **{name.capitalize(): ", ".join(texts) for name, texts in object_texts(request.objects).items()},
            "Paste": request.paste,
        }
        return {name: value for name, value in values.items() if value}

    def python(self, name: str, source: str) -> Iterator[str]:
        request = self.request
        options: dict[str, Any] = {"cross_replace": request.cross, "self_replace": request.self_}
        options |= {"reweight": dict(request.weights)} if request.weights else {}
        options |= object_keywords(request.objects)
        text = f"{source}, {request.target!r}{keywords(options)}"
        if request.region is not None:
            yield f"region = Image.open({self.region_name!r})"
            text += ", region=region"
        if request.blend is not None:
            text += f", local_blend={blend_python(request.blend)}"
        elif request.region is not None:
            text += ", local_blend=minip2p.LocalBlend(mask=region)"
        yield f"{name} = pipe.edit({text})"

    def command(self, model: ModelSource) -> list[str] | None:
        """None for a blend that the command line cannot name."""
        request, blend, source = self.request, self.request.blend, self.source
        words = ["edit", f"--cross={request.cross}", f"--self={request.self_}"]
        words += [f"--reweight={word}={weight}" for word, weight in request.weights]
        if blend is not None:
            if len(blend.source) != 1 or len(blend.target) != 1:
                return None
            words.append(f"--blend={blend.source[0]}:{blend.target[0]}")
            words += [] if blend.threshold is None else [f"--threshold={blend.threshold}"]
        if request.region is not None:
            words += [f"--within={self.region_name}", *([f"--mask={self.region_name}"] if blend is None else [])]
        words += [f"--{name}={text}" for name, texts in object_texts(request.objects).items() for text in texts]
        words += ["--paste"] if request.paste else []
        if isinstance(source, Inverted):
            asked = source.request
            words += [f"--prompt={asked.prompt}", f"--method={asked.method}", *run_options(asked.steps, asked.guidance)]
            origin = PHOTO
        elif isinstance(source, Generated) and is_plainly_a_prompt(source.request.prompt):
            generation = source.request
            words += [f"--seed={generation.seed}", *run_options(generation.steps, generation.guidance)]
            words += [f"--negative={generation.negative}"] if generation.negative else []
            origin = generation.prompt
        else:
            origin = SOURCE_RUN
        return [*words, "--no-compare", *model.options, "-o", "picture.png", *positional(origin, request.target)]


Recipe = Generated | Inverted | Edited


def ancestors(recipe: Recipe) -> list[Recipe]:
    """The recipe's source's source, …, its source, and the recipe itself."""
    chain: list[Recipe] = []
    current: Recipe | None = recipe
    while current is not None:
        chain.append(current)
        current = current.source
    return chain[::-1]


def python_text(recipe: Recipe, model: ModelSource) -> str:
    """A program that makes the run `run` and writes its picture."""
    chain = ancestors(recipe)
    lines: list[str] = []
    names = [*(f"source{n}" if n > 1 else "source" for n in range(len(chain) - 1, 0, -1)), "run"]
    for step, name in zip(chain, names, strict=True):
        lines += step.python(name, names[step.level - 1])
    if isinstance(recipe, Edited) and recipe.request.paste:
        lines += paste_python(recipe, names[-2])
        lines.append('picture.save("picture.png")')
    else:
        lines.append('run.image.save("picture.png")')
    imports = ["import minip2p"]
    if any("Image.open" in line for line in lines):
        imports.append("from PIL import Image")
    if used := [
        name for name in ("composite", "fit_image", "read_mask", "to_pil") if any(f"{name}(" in x for x in lines)
    ]:
        imports.append(f"from minip2p.io.images import {', '.join(used)}")
    return "\n".join([*imports, "", *model.python, *lines, ""])


def paste_python(recipe: Edited, source: str) -> list[str]:
    mask = "run.blend_mask" if recipe.request.blend is not None else "read_mask(region) >= 0.5"
    if isinstance(recipe.source, Inverted):
        original = f"fit_image(Image.open({PHOTO!r}), run.picture_size)"
    else:
        original = f"{source}.picture"
    return [f"picture = to_pil(composite(run.picture, {original}, {mask}))"]


def command_text(recipe: Recipe, model: ModelSource) -> str | None:
    """A command line that makes the picture; None where there is none."""
    words = recipe.command(model)
    return None if words is None else shlex.join(["minip2p", *words])


def run_options(steps: int, guidance: float | None) -> list[str]:
    return [f"--steps={steps}", *([] if guidance is None else [f"--guidance={guidance}"])]


def keywords(options: dict[str, Any]) -> str:
    return "".join(f", {name}={value!r}" for name, value in options.items() if value is not None)


def blend_python(blend: Blend) -> str:
    threshold = "" if blend.threshold is None else f", threshold={blend.threshold!r}"
    return f"minip2p.LocalBlend({blend.source!r}, {blend.target!r}{threshold})"


def positional(*texts: str) -> list[str]:
    """Arguments of the command line, after -- where one of them would be read as an option."""
    return [*(["--"] if any(text.startswith("-") for text in texts) else []), *texts]


def is_plainly_a_prompt(text: str) -> bool:
    """Whether the command line cannot take a prompt for the name of a file."""
    return re.search(r"[./\\~]", text) is None and " " in text


def edit_keywords(request: Edit) -> dict[str, Any]:
    """The keywords of `Pipeline.edit` for an edit."""
    blend = None
    if request.blend is not None:
        threshold = LocalBlend.threshold if request.blend.threshold is None else request.blend.threshold
        blend = LocalBlend(request.blend.source, request.blend.target, threshold=threshold)
    elif request.region is not None:
        blend = LocalBlend(mask=request.region)
    return {
        "cross_replace": request.cross,
        "self_replace": request.self_,
        "reweight": dict(request.weights) or None,
        "local_blend": blend,
        "region": request.region,
        **object_keywords(request.objects),
    }


def object_keywords(objects: Sequence[ObjectChange]) -> dict[str, Any]:
    """What happens to objects, as keywords of `Pipeline.edit`, as far as they are needed."""
    values: dict[str, Any] = {
        "move": {each.word: (each.x, each.y) for each in objects if each.kind == "move"},
        "resize": {each.word: each.scale for each in objects if each.scale != 1},
        "duplicate": {each.word: (each.x, each.y) for each in objects if each.kind == "duplicate"},
        "remove": [each.word for each in objects if each.kind == "remove"],
    }
    return {name: value for name, value in values.items() if value}


def object_texts(objects: Sequence[ObjectChange]) -> dict[str, list[str]]:
    """The same as options of the command line: their names, and what each time they are given."""

    def text(word: str, value: Any) -> str:
        return f"{word}:{value[0]},{value[1]}" if isinstance(value, tuple) else f"{word}:{value}"

    return {
        name: values if name == "remove" else [text(word, value) for word, value in values.items()]
        for name, values in object_keywords(objects).items()
    }
