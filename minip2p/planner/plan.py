"""`Plan`: an edit as data, which a planner writes and `Pipeline.edit` takes. It has a JSON form, and a JSON schema.

Shifts are shares of the picture's width and height, because a planner sees no picture and knows no size.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, NamedTuple

from minip2p.io.files import parse_json
from minip2p.p2p.local_blend import LocalBlend
from minip2p.p2p.options import EditOptions
from minip2p.p2p.schedules import StepShare, parse_step_share
from minip2p.p2p.warp import LARGEST_SCALE, SMALLEST_SCALE
from minip2p.text.prompt import split_occurrence, split_words
from minip2p.validation import is_finite

LONGEST = 1000  # characters of a caption, an instruction or a target
LARGEST_WEIGHT = 10.0


class KindSettings(NamedTuple):
    """What a plan of some kind has. cross, self: its τ. needs: the field without which it changes nothing, or ""."""

    cross: float
    self: float
    needs: str


# τ by the kind of edit: those at which docs/results.md measures edits of words (`bench-edits`) and moves
# (`bench-moves`). A weight alone has not been measured: its τ are the defaults of `EditOptions`.
KINDS: Mapping[str, KindSettings] = MappingProxyType(
    {
        "swap": KindSettings(0.8, 0.8, ""),
        "attribute": KindSettings(0.8, 0.8, ""),
        "add": KindSettings(0.8, 0.8, ""),
        "restyle": KindSettings(0.8, 0.8, ""),
        "place": KindSettings(0.8, 0.8, ""),
        "strength": KindSettings(0.8, 0.4, "reweight"),
        "remove": KindSettings(0.8, 0.8, "remove"),
        "move": KindSettings(0.8, 0.8, "move"),
        "resize": KindSettings(0.8, 0.8, "resize"),
        "duplicate": KindSettings(0.8, 0.8, "duplicate"),
    }
)
TAU = ("cross_replace", "self_replace")  # which come from KINDS, never from a language model
LISTS: Mapping[str, tuple[str, ...]] = MappingProxyType(  # the numbers of each entry in JSON, beside its word
    {"reweight": ("weight",), "move": ("x", "y"), "resize": ("factor",), "duplicate": ("x", "y")}
)
NUMBERS: Mapping[str, Mapping[str, float]] = MappingProxyType(  # their limits; a multiple of 0.05 has two decimals
    {
        "weight": {"minimum": 0, "maximum": LARGEST_WEIGHT, "multipleOf": 0.05},
        "factor": {"minimum": SMALLEST_SCALE, "maximum": LARGEST_SCALE, "multipleOf": 0.05},
        "x": {"minimum": -1, "maximum": 1, "multipleOf": 0.05},
        "y": {"minimum": -1, "maximum": 1, "multipleOf": 0.05},
    }
)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """An edit of a picture whose caption is known. The names are those of `EditOptions` where it has the same.

    target: the prompt of the edited picture. kind: one of KINDS. cross_replace, self_replace: τ; None is that of the
    kind. reweight: word of the target -> weight. local_blend: (word of the caption, word of the target) whose places
    alone may change. move, duplicate: word of the caption -> (x, y), to the right and down, as shares of the picture's
    width and height. resize: word of the caption -> factor of its size. remove: words of the caption.
    Raises ValueError for values that are wrong whatever the caption is.
    """

    target: str
    kind: str
    cross_replace: StepShare | None = None
    self_replace: StepShare | None = None
    reweight: Mapping[str, float] = field(default_factory=dict)
    local_blend: tuple[str, str] | None = None
    move: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    resize: Mapping[str, float] = field(default_factory=dict)
    duplicate: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    remove: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_text("the target of a plan", self.target)
        if not isinstance(self.kind, str) or self.kind not in KINDS:
            raise ValueError(f"the kind of a plan is {', '.join(KINDS)}, not {self.kind!r}")
        settings = KINDS[self.kind]
        for name, default in zip(TAU, (settings.cross, settings.self), strict=True):
            share = default if getattr(self, name) is None else getattr(self, name)
            parse_step_share(name, share)
            object.__setattr__(self, name, tuple(share) if isinstance(share, list) else share)
        for name, count in (("remove", None), ("local_blend", 2)):
            words = getattr(self, name)
            if words is not None and (not isinstance(words, tuple | list) or count not in (None, len(words))):
                raise ValueError(f"{name} is {'a list of words' if count is None else 'two words'}, not {words!r}")
            object.__setattr__(self, name, None if words is None else tuple(words))
        for name in LISTS:
            if not isinstance(getattr(self, name), Mapping):
                raise ValueError(f"{name} takes words with their numbers, as {{'cat': …}}, not {getattr(self, name)!r}")
            values = {word: tuple(v) if isinstance(v, list) else v for word, v in getattr(self, name).items()}
            object.__setattr__(self, name, MappingProxyType(values))
        for word, weight in self.reweight.items():
            if not is_finite(weight) or abs(weight) > LARGEST_WEIGHT:
                limit = f"{LARGEST_WEIGHT:g}"
                raise ValueError(
                    f"reweight: the weight of {word!r} is a number from -{limit} to {limit}, not {weight!r}"
                )
        for name in ("move", "duplicate"):
            for word, by in getattr(self, name).items():
                if (
                    not isinstance(by, tuple)
                    or len(by) != 2
                    or not all(is_finite(share) and abs(share) <= 1 for share in by)
                ):
                    raise ValueError(
                        f"{name}: {word!r} goes by (x, y), shares of the picture from -1 to 1, not by {by!r}"
                    )
        for word, factor in self.resize.items():
            if not is_finite(factor) or not SMALLEST_SCALE <= factor <= LARGEST_SCALE:
                limits = f"{SMALLEST_SCALE:g} to {LARGEST_SCALE:g}"
                raise ValueError(f"resize: the factor of {word!r} is a number from {limits}, not {factor!r}")
        if settings.needs and not getattr(self, settings.needs):
            raise ValueError(f"a plan of kind {self.kind} needs {settings.needs}, which is empty")

    def check(self, caption: str) -> "Plan":
        """This plan, for a picture of this caption. Raises ValueError for words that are not there, and for no edit."""
        blend = self.local_blend or ()
        for name, words in {"local_blend": blend[:1], **{name: getattr(self, name) for name in OBJECTS}}.items():
            check_words(name, words, "caption", caption)
        for name, words in {"local_blend": blend[1:], "reweight": self.reweight}.items():
            check_words(name, words, "target", self.target)
        changes = self.reweight or any(getattr(self, name) for name in OBJECTS)
        if not changes and split_words(self.target) == split_words(caption):
            raise ValueError(f"the plan changes nothing: its target is the caption {caption!r}")
        return self

    @property
    def blend(self) -> LocalBlend | None:
        """The local blend of `local_blend`, with the settings that docs/results.md measures as `direct+mask`."""
        words = self.local_blend
        return None if words is None else LocalBlend(words[:1], words[1:], threshold="otsu", pool=False)

    def apply_to(self, options: EditOptions, size: tuple[int, int]) -> EditOptions:
        """The options of an edit with those of the plan. size: rows and columns of the picture, in pixels.

        Raises ValueError where the options have something that the plan has too.
        """
        rows, columns = size
        shifts = {
            name: {word: (x * columns, y * rows) for word, (x, y) in getattr(self, name).items()} or None
            for name in ("move", "duplicate")
        }
        values: dict[str, Any] = {
            "cross_replace": self.cross_replace,
            "self_replace": self.self_replace,
            "reweight": dict(self.reweight) or None,
            "local_blend": self.blend,
            "resize": dict(self.resize) or None,
            "remove": list(self.remove) or None,
            **shifts,
        }
        for name in values:
            if getattr(options, name) != getattr(EditOptions, name):
                raise ValueError(f"{name}: the plan says this already: change the plan, or give a prompt as the target")
        return replace(options, **values)

    def to_json(self) -> str:
        """The plan as JSON, which `read_plan` reads."""
        blend = self.local_blend
        values: dict[str, Any] = {
            "target": self.target,
            "kind": self.kind,
            "cross_replace": self.cross_replace,
            "self_replace": self.self_replace,
            "local_blend": blend and {"source": blend[0], "target": blend[1]},
            "remove": list(self.remove),
        }
        for name, numbers in LISTS.items():
            values[name] = [
                {"word": word, **dict(zip(numbers, value if isinstance(value, tuple) else (value,), strict=True))}
                for word, value in getattr(self, name).items()
            ]
        return json.dumps(values, indent=2, ensure_ascii=False)


OBJECTS = ("move", "resize", "duplicate", "remove")  # the fields that name objects of the picture


def read_plan(text: str, caption: str, *, location: str = "the plan", without: Iterable[str] = ()) -> Plan:
    """A plan from its JSON, for a picture of this caption. Fields that are absent are empty; τ are then the kind's.

    location: what an error calls the text. without: fields that it may not have. Raises ValueError, one line.
    """
    values = parse_json(text, location)
    if not isinstance(values, dict):
        raise ValueError(f"{location}: is not a JSON object but {type(values).__name__}")
    known = Plan.__dataclass_fields__.keys() - set(without)
    if unknown := sorted(map(str, values.keys() - known)):
        raise ValueError(f"{location}: {unknown[0]!r} is not a field of a plan, which are {', '.join(sorted(known))}")
    if missing := [name for name in ("target", "kind") if name not in values]:
        raise ValueError(f"{location}: {missing[0]} is missing")
    try:
        fields = {name: values[name] for name in values.keys() - LISTS.keys() - {"local_blend", "remove"}}
        fields |= {name: read_entries(name, values[name]) for name in LISTS.keys() & values.keys()}
        if values.get("local_blend") is not None:
            entry = read_entry("local_blend", values["local_blend"], ("source", "target"))
            fields["local_blend"] = (entry["source"], entry["target"])
        fields["remove"] = tuple(read_list("remove", values.get("remove", [])))
        return Plan(**fields).check(caption)
    except ValueError as error:
        raise ValueError(f"{location}: {error}") from None


def read_entries(name: str, entries: Any) -> dict[str, Any]:
    """Word -> number or numbers, from the list of a plan's JSON. Raises ValueError."""
    values: dict[str, Any] = {}
    for item in read_list(name, entries):
        entry = read_entry(name, item, ("word", *LISTS[name]))
        word, *numbers = (entry[part] for part in ("word", *LISTS[name]))
        if not isinstance(word, str) or word in values:
            raise ValueError(f"{name}: {word!r} is {'named twice' if isinstance(word, str) else 'not a word'}")
        if wrong := [number for number in numbers if not isinstance(number, int | float) or isinstance(number, bool)]:
            raise ValueError(f"{name}: {word!r} has {wrong[0]!r}, which is not a number")
        values[word] = numbers[0] if len(numbers) == 1 else tuple(numbers)
    return values


def read_list(name: str, value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError(f"{name}: is not a list but {value!r}")
    return value


def read_entry(name: str, value: Any, parts: tuple[str, ...]) -> dict[str, Any]:
    """A JSON object with exactly these parts. Raises ValueError."""
    if not isinstance(value, dict) or value.keys() != set(parts):
        raise ValueError(f"{name}: an entry has {', '.join(parts)}, and this is {value!r}")
    return value


def plan_schema(caption: str, kind: str | None = None, target: str = "") -> dict[str, Any]:
    """The JSON schema of plans for a caption, without τ. Words of the picture are an enumeration of the caption's.

    kind, target: where they are known, the schema has them, the numbers' limits, and what the kind needs, once.
    Every property is required and no other is allowed, as the strict mode of OpenAI's API wants it.
    """
    word = {"type": "string", "enum": caption_words(caption)}
    new_word: dict[str, Any] = {"type": "string"} if kind is None else {"enum": split_words(target)}
    no_blend = {"type": "null"}
    fields: dict[str, Any] = {
        "kind": {"type": "string", "enum": list(KINDS)} if kind is None else {"const": kind},
        "target": {"type": "string"} if kind is None else {"const": target},
        "local_blend": {"anyOf": [no_blend, strict_object(source=word, target=new_word)]},
        "remove": {"type": "array", "items": word},
    }
    for name, numbers in LISTS.items():
        entry = {number: {"type": "number", **({} if kind is None else NUMBERS[number])} for number in numbers}
        fields[name] = {"type": "array", "items": strict_object(word=word, **entry)}
    if kind is not None:
        needs = KINDS[kind].needs
        for name in ("remove", *LISTS):
            fields[name] |= {"minItems": int(name == needs), "maxItems": int(name == needs)}
        fields["local_blend"] = no_blend if needs else fields["local_blend"]
    return strict_object(**fields)


def strict_object(**properties: Any) -> dict[str, Any]:
    """The JSON schema of an object with exactly these properties."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def caption_words(caption: str) -> list[str]:
    """The words of a caption, each once, in its order. Raises ValueError for a caption without words."""
    check_text("the caption", caption)
    return list(dict.fromkeys(split_words(caption)))


def has_words(text: str, selector: str) -> bool:
    """Whether a text has a word, several words in a row, or the n-th place of them ("cat#2")."""
    phrase, nth = split_occurrence(selector)
    wanted, words = split_words(phrase), split_words(text)
    places = sum(words[n : n + len(wanted)] == wanted for n in range(len(words)))
    return places >= (1 if nth is None else max(nth, 1)) and nth != 0


def check_words(name: str, words: Iterable[Any], what: str, text: str) -> None:
    """Raises ValueError for words that a text does not have. name: of the field. what: the text is, for the error."""
    for word in words:
        if not isinstance(word, str) or not has_words(text, word):
            raise ValueError(f"{name}: {word!r} is not in the {what} {text!r}")


def check_text(what: str, text: Any) -> None:
    """Raises ValueError for a text without words, with line breaks or other control characters, or too long."""
    if not isinstance(text, str) or not any(character.isalnum() for character in text):
        raise ValueError(f"{what} is a text with words, not {text!r}")
    if len(text) > LONGEST:
        raise ValueError(f"{what} has {len(text)} characters, and {LONGEST} is the most")
    if not text.isprintable():
        raise ValueError(f"{what} has a line break or another character that cannot be printed: {text[:60]!r}")
