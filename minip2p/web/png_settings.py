"""The settings in a PNG that minip2p has written, as the page's fields: the inverse of `sampling.metadata.parameters`.

PNGs of other programs in A1111's form are read as well, as far as they have the same settings.
"""

import json
import math
import re
from collections.abc import Callable
from typing import Any

PAIR = re.compile(r'(\w[\w \-/]{1,40}):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')
MAX_CHARACTERS = 10_000  # a longer text would take long to read: quotes are sought through all of it
NEGATIVE = "Negative prompt: "


def parse_parameters(text: str) -> dict[str, Any]:
    """The text of the chunk `parameters` -> settings. Those that it does not have are None.

    prompt, negative, seed, steps, guidance, method; of an edit, source (its source prompt), cross, self, weights,
    blend, threshold, objects (as in a request), paste; region: whether it had one. What cannot be read is None.
    Raises ValueError for a text that is too long.
    """
    if len(text) > MAX_CHARACTERS:
        raise ValueError(f"its settings have {len(text)} characters, and {MAX_CHARACTERS} are the most")
    *prompt, last = text.split("\n")
    negative = ""
    if prompt and prompt[-1].startswith(NEGATIVE):
        negative = prompt.pop().removeprefix(NEGATIVE)
    values = dict(PAIR.findall(last)) if prompt else {}
    settings = {name: unquoted(value) for name, value in values.items()}
    return {
        "prompt": "\n".join(prompt) if prompt else last,
        "negative": negative,
        "seed": read(int, settings.get("Seed")),
        "steps": read(int, settings.get("Steps")),
        "guidance": read(number, settings.get("CFG scale")),
        "method": settings.get("Method"),
        "source": settings.get("Source"),
        "cross": read(number, settings.get("Cross")),
        "self": read(number, settings.get("Self")),
        "weights": read(parse_weights, settings.get("Reweight")),
        "blend": read(parse_blend, settings.get("Blend")),
        "threshold": read(number, settings.get("Threshold")),
        "objects": read(parse_objects, settings),
        "paste": settings.get("Paste") == "True",
        "region": bool({"Mask", "Within"} & settings.keys()),
    }


def unquoted(value: str) -> str:
    return str(read(json.loads, value)) if value.startswith('"') else value.strip()


def read(parse: Callable[[Any], Any], value: Any) -> Any:
    """A value parsed; None where it is missing or something else."""
    try:
        return None if value is None else parse(value)
    except ValueError:
        return None


def number(text: str) -> float:
    """Raises ValueError for anything but a finite number."""
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(text)
    return value


def parse_weights(text: str) -> dict[str, float]:
    """'fog=2.0, car=.5' -> {'fog': 2.0, 'car': 0.5}."""
    pairs = (pair.rpartition("=") for pair in text.split(", "))
    return {word: number(weight) for word, _, weight in pairs}


def parse_blend(text: str) -> dict[str, list[str]]:
    """'cat:tiger' -> {'source': ['cat'], 'target': ['tiger']}."""
    source, colon, target = text.partition(":")
    return {"source": words(source), "target": words(target if colon else source)}


def parse_objects(settings: dict[str, str]) -> list[dict[str, Any]]:
    """Move: 'cat:24,0, house:0,0', Resize: 'cat:1.5', Remove: 'pig' -> the objects from back to front."""

    def pairs(name: str) -> dict[str, str]:
        return {word: value for word, _, value in (text.rpartition(":") for text in words(settings.get(name, "")))}

    shifts = {kind: pairs(kind.capitalize()) for kind in ("move", "duplicate")}
    scales = {word: number(scale) for word, scale in pairs("Resize").items()}
    shifts["move"] |= {word: "0,0" for word in scales if word not in shifts["move"] | shifts["duplicate"]}
    objects: list[dict[str, Any]] = []
    for kind, places in shifts.items():
        for word, shift in places.items():
            x, y = map(number, shift.split(","))
            objects.append({"word": word, "kind": kind, "x": x, "y": y, "scale": scales.get(word, 1.0)})
    return objects + [{"word": word, "kind": "remove"} for word in words(settings.get("Remove", ""))]


def words(text: str) -> list[str]:
    return [word for word in text.split(", ") if word]
