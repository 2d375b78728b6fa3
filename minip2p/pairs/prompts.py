"""Prompts of pairs: a file with a caption, an instruction and the caption after it in each line.

    python -m minip2p.pairs.prompts --scenes 20 -o prompts.jsonl
    python -m minip2p.pairs.prompts --captions captions.txt --by http://localhost:8000/v1 -o prompts.jsonl

The first draws them from the grammar of the small world. The second asks a language model, in the prompt layout of
InstructPix2Pix (Brooks et al. 2022, section 3.1). The fields `input`, `edit` and `output` are those of its files.
"""

import argparse
import hashlib
import json
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from minip2p.errors import Notice, run_guarded
from minip2p.evaluation.make_cases import expected_objects
from minip2p.io.files import parse_json, read_text, write_text
from minip2p.planner.endpoint import TIMEOUT, fetch, only_model
from minip2p.tiny.scene_edits import change_scene, instruction_for, with_full_caption
from minip2p.tiny.scenes import Scene, is_held_out, sample_scene

TEXTS = ("input", "edit", "output")  # the fields that each line must have
KIND = "edit"  # of a line that names no kind

AFTER_CAPTION, AFTER_INSTRUCTION, END = "\n##\n", "\n%%\n", "\nEND"  # of the published layout
EXAMPLES = (  # of the layout, for a model that was not trained on it
    ("a cat on the beach", "make the cat a tiger", "a tiger on the beach"),
    ("a photo of a red car on the street", "paint the car blue", "a photo of a blue car on the street"),
    ("a house in a meadow", "make it winter", "a house in a meadow in the snow"),
    ("a portrait of a woman", "as a pencil sketch", "a pencil sketch of a woman"),
)
TRIES = 4  # as published
ASKING = (("temperature", 0.7), ("max_tokens", 256), ("top_p", 1.0), ("frequency_penalty", 0.1))  # as published


@dataclass(frozen=True)
class Target:
    """An edit of a source. expected: what the exam (`minip2p.pairs.exam`) has to find, as JSON, or ""."""

    prompt: str
    instruction: str
    kind: str = KIND
    expected: str = ""


@dataclass(frozen=True)
class Unit:
    """A source with all of its targets: what is run, and written, as a whole, since they share the source's run."""

    source: str
    targets: tuple[Target, ...]

    @property
    def key(self) -> str:
        """Its name, which depends on nothing but its prompts."""
        return hashlib.sha256(json.dumps(asdict(self)).encode()).hexdigest()[:16]


def read_prompts(file: Path) -> list[Unit]:
    """The units of a file, in the order in which their sources first appear.

    A line is a JSON object: `input`, `edit`, `output`, and, if there are any, `kind` and `expected`.
    Raises FileNotFoundError or ValueError, one line, which names the file and the line.
    """
    targets: dict[str, list[Target]] = {}
    for number, line in enumerate(read_text(file).splitlines(), 1):
        if line.strip():
            source, target = read_line(line, f"{file}, line {number}")
            if any(target.prompt == other.prompt for other in targets.setdefault(source, [])):
                raise ValueError(f"{file}, line {number}: this input and output are in the file twice")
            targets[source].append(target)
    if not targets:
        raise ValueError(
            f"{file}: has no prompts; a line is {json.dumps(dict.fromkeys(TEXTS, '…'), ensure_ascii=False)}"
        )
    return [Unit(source, tuple(edits)) for source, edits in targets.items()]


def read_line(line: str, location: str) -> tuple[str, Target]:
    """The source and the target of a line. location: what an error calls it. Raises ValueError."""
    values = parse_json(line, location)
    if not isinstance(values, dict):
        raise ValueError(f"{location}: is not a JSON object but {type(values).__name__}")
    for name in TEXTS:
        if not isinstance(values.get(name), str) or not values[name].strip():
            raise ValueError(
                f"{location}: {name} must be a text: a line has the caption (input), an instruction (edit) and the "
                "caption after it (output)"
            )
    if not isinstance(values.get("kind", KIND), str):
        raise ValueError(f"{location}: kind must be a word, not {values['kind']!r}")
    if same(values["input"], values["output"]):
        raise ValueError(f"{location}: output is the input, so nothing would be edited")
    expected = json.dumps(values["expected"]) if "expected" in values else ""
    return values["input"], Target(values["output"], values["edit"], values.get("kind", KIND), expected)


def same(a: str, b: str) -> bool:
    """Whether two captions differ by nothing but case and a full stop, as in the published code."""
    return a.strip().strip(".!?").lower() == b.strip().strip(".!?").lower()


def draw_prompts(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Lines for `count` sources of the small world, none of a combination that is held out from its training.

    Every other source has one object, which is exchanged, gets another colour, place or style, or a second object
    beside it; the others have two, of which one is exchanged or removed. An edit that was drawn before is left out.
    """
    lines: dict[tuple[str, str], dict[str, Any]] = {}  # by input and output
    for number in range(count):
        rng = np.random.default_rng((seed, number))
        scene = sample_scene(rng, objects=2, style="photo", attribute=None)
        caption_seed, single = int(rng.integers(2**31)), replace(scene, things=scene.things[:1])
        kinds = ("two", "remove") if number % 2 else ("object", "colour", "background", "style", "add")
        for kind in kinds:
            if kind == "colour" and not single.things[0].colour:
                continue
            start = scene if kind in ("two", "remove", "add") else single
            before, after = (with_full_caption(each, caption_seed) for each in change_scene(kind, start, rng))
            if not is_held_out(after):
                line = scene_line(kind, before, after)
                lines.setdefault((line["input"], line["output"]), line)
    return list(lines.values())


def scene_line(kind: str, before: Scene, after: Scene) -> dict[str, Any]:
    """The line of a scene and the scene after an edit."""
    shown = {"objects": [thing.name for thing in before.things], "gone": []}
    expected = {"before": shown, "after": expected_objects(kind, before, after)}
    edit = instruction_for(before, after)
    return {"input": before.caption, "edit": edit, "output": after.caption, "kind": kind, "expected": expected}


def ask_prompts(
    captions: Iterable[str], url: str, model: str | None = None, timeout: float = TIMEOUT
) -> list[dict[str, Any]]:
    """Lines for captions, as a language model completes them: caption ## instruction %% edited caption END.

    url, model, timeout: of an OpenAI-compatible server that completes texts, see `minip2p.planner.endpoint`. Captions
    for which no answer has the layout are left out, with a Notice. Raises ValueError, one line, for what the server
    refuses.
    """
    model = model or only_model(url, timeout)
    texts = [f"{a}{AFTER_CAPTION}{b}{AFTER_INSTRUCTION}{c}{END}\n" for a, b, c in EXAMPLES]
    lines = []
    for caption in captions:
        body = {"model": model, "prompt": f"{''.join(texts)}{caption}{AFTER_CAPTION}", "stop": [END], **dict(ASKING)}
        for _ in range(TRIES):
            answer = fetch(url, "completions", timeout, body)
            if (edit := read_answer(answer, caption, url)) is not None:
                lines.append({"input": caption, **edit})
                break
        else:
            warnings.warn(f"{url}: no edit of {caption!r}: {TRIES} answers without the layout", Notice, stacklevel=2)
    return lines


def read_answer(answer: Any, caption: str, url: str) -> dict[str, str] | None:
    """The instruction and the edited caption of an answer; None where it has not both, or changes nothing.

    Raises ValueError for an answer without a text.
    """
    try:
        text = answer["choices"][0]["text"]
        parts = [part.strip() for part in text.split(AFTER_INSTRUCTION)]
    except (LookupError, TypeError, AttributeError):
        raise ValueError(f"{url}: the answer has no text: does this server complete texts, at /completions?") from None
    if len(parts) != 2 or not all(parts) or any("\n" in part for part in parts) or same(caption, parts[1]):
        return None
    return {"edit": parts[0], "output": parts[1]}


def write_prompts(file: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    """Writes lines as `read_prompts` reads them. Raises ValueError where there are none."""
    if not lines:
        raise ValueError(f"{file}: there is no prompt to write")
    write_text(file, "".join(json.dumps(dict(line), ensure_ascii=False) + "\n" for line in lines))


def main(argv: Sequence[str] | None = None) -> int:
    """Writes prompts from the command line and returns the exit status."""
    parser = argparse.ArgumentParser(description="Makes the prompts of pairs.")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--scenes", type=int, metavar="N", help="draw N sources from the small world")
    source.add_argument("--captions", type=Path, metavar="FILE", help="a caption a line, for the server of --by")
    parser.add_argument("--by", metavar="URL", help="an OpenAI-compatible server, as http://localhost:8000/v1")
    parser.add_argument("--by-model", metavar="NAME", help="the model of --by (default: the only one that it has)")
    parser.add_argument("--seed", type=int, default=0, help="of --scenes (default: 0)")
    parser.add_argument("-o", "--out", type=Path, default=Path("prompts.jsonl"))
    args = parser.parse_args(argv)

    def work() -> None:
        if args.captions is None:
            lines = draw_prompts(args.scenes, args.seed)
        elif args.by is None:
            raise ValueError("--captions needs the address of a server: --by URL")
        else:
            captions = [line.strip() for line in read_text(args.captions).splitlines() if line.strip()]
            lines = ask_prompts(dict.fromkeys(captions), args.by, args.by_model)
        write_prompts(args.out, lines)
        print(f"{args.out}: {len(lines)} edits")

    return run_guarded(work)


if __name__ == "__main__":
    raise SystemExit(main())
