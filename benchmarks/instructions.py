"""Instructions end to end, on the cases of `minip2p bench-edits`: a sentence, its plan, and the edit that the plan is.

    python -m minip2p bench-edits --methods direct,direct+mask --steps 20 -o edits
    python benchmarks/instructions.py --edits edits -o instructions

Each case is said in a sentence, in several wordings in turn, and planned by the planner that ships. The first table
says how often the plan is what the true captions say. With --edits, the results with the true captions, the second one
compares with "direct" how often the judge finds what it has to, and the PSNR of the background in dB; a plan that is
one of these edits is not run again. The last line is JSON.
"""

import argparse
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from common import positive_int, print_figures
from tqdm import tqdm

import minip2p
from minip2p.checkpoints.components import RowCounter
from minip2p.errors import run_guarded
from minip2p.evaluation.edit_benchmark import Networks, measure_edit, result_files, training_size
from minip2p.evaluation.pie_bench import Case, read_cases
from minip2p.io.files import read_json
from minip2p.io.images import fit_image, read_image
from minip2p.metrics.image import mean
from minip2p.planner.exam import plan_or_none
from minip2p.planner.lexicon import ARTICLES, article_for
from minip2p.planner.plan import Plan
from minip2p.planner.tagger import Tagger
from minip2p.text.prompt import split_words
from minip2p.tiny.judge import Judge
from minip2p.tiny.scene_edits import STYLE_NAMES
from minip2p.tiny.scenes import COLOURS, PLACE_PHRASES

KINDS = ("object", "add", "remove", "colour", "background", "style", "two")
EXCHANGES = (
    "make the {old} {a_new}",
    "replace the {old} with {a_new}",
    "I want {a_new} instead of the {old}",
    "turn the {old} into {a_new}",
    "the {old} should be {a_new}",
    "swap the {old} for {a_new}",
)
WORDINGS: Mapping[str, Sequence[str]] = MappingProxyType(
    {
        "object": EXCHANGES,
        "two": EXCHANGES,
        "add": (
            "add {a_new}",
            "put {a_new} next to the {old}",
            "there should also be {a_new}",
            "I want to see {a_new} too",
        ),
        "remove": ("remove the {old}", "take the {old} away", "get rid of the {old}", "I don't want the {old}"),
        "colour": (
            "make the {old} {new}",
            "paint the {old} {new}",
            "change the colour of the {old} to {new}",
            "I want a {new} {old}",
        ),
        "background": (
            "put the {old} {new}",
            "show the {old} {new}",
            "I want the {old} to be {new}",
            "the {old} should be {new}",
        ),
        "style": ("make it {a_new}", "turn this into {a_new}", "draw it as {a_new}", "I want {a_new} of this"),
    }
)
METHOD, STEPS = "instruction", 20


def instruction_for(case: Case, turn: int) -> str:
    """A sentence that asks for a case's edit. turn: chooses the wording."""
    expected = case.expected or {}
    objects = expected["objects"]
    old, new = (case.blend.get(name, [""])[:1] or [""] for name in ("source", "target"))
    slots = {"old": "".join(old), "new": "".join(new)}
    if case.kind == "colour":
        ((slots["old"], slots["new"]),) = expected["colours"].items()
    elif case.kind == "background":
        slots = {"old": objects[0], "new": phrase_of(case.target, PLACE_PHRASES[expected["background"]])}
    elif case.kind == "style":
        slots["new"] = phrase_of(case.target, STYLE_NAMES[expected["style"]])
    elif case.kind == "add":  # with its colour
        coloured = re.search(rf"\b(?:{'|'.join(COLOURS)}) {slots['new']}\b", case.target)
        slots = {"old": objects[0], "new": coloured[0] if coloured else slots["new"]}
    slots["a_new"] = f"{article_for(slots['new'])} {slots['new']}"
    wordings = WORDINGS[case.kind]
    return wordings[turn % len(wordings)].format(**slots)


def phrase_of(caption: str, phrases: Sequence[str]) -> str:
    """The longest of the phrases that a caption has."""
    return max((phrase for phrase in phrases if phrase in caption), key=len)


def content(caption: str) -> tuple[str, list[str]]:
    """The style of a caption, and its other words without articles, in alphabetic order."""
    names = {name: style for style, group in STYLE_NAMES.items() for name in group}
    pattern = "|".join(sorted(names, key=len, reverse=True))
    match = re.search(rf"^an? ({pattern}) of |, (?:an? )?({pattern})$", caption)
    style = names[match[1] or match[2]] if match else ""
    rest = caption if match is None else caption.replace(match[0], "")
    return style, sorted(without_articles(rest))


def without_articles(caption: str) -> list[str]:
    return [word for word in split_words(caption) if word not in ARTICLES | {"the"}]


def agreement(plan: Plan | None, case: Case) -> str:
    """How a plan agrees with the true target: "exact", "articles" (but for them), "meaning", "other" or "refused".

    The meaning is the same where the style and the other words are, in any order. A plan may also remove what goes.
    """
    if plan is None:
        return "refused"
    if plan.remove:
        is_same = case.kind == "remove" and plan.remove == tuple(case.blend["source"])
        return "meaning" if is_same and content(plan.target) == content(case.target) else "other"
    if split_words(plan.target) == split_words(case.target):
        return "exact"
    if without_articles(plan.target) == without_articles(case.target):
        return "articles"
    return "meaning" if content(plan.target) == content(case.target) else "other"


def method_of(plan: Plan, case: Case) -> str | None:
    """The method of `bench-edits` whose edit a plan is: that of the true captions, blended or not."""
    edit = replace(plan, kind="swap")  # whose kind needs nothing else
    plain = Plan(target=case.target, kind="swap")
    if edit == plain:
        return "direct"
    source, target = (tuple(case.blend.get(name, ())) for name in ("source", "target"))
    is_blended = source and target and "without_source" not in case.blend
    return "direct+mask" if is_blended and edit == replace(plain, local_blend=(source[0], target[0])) else None


class Measured(NamedTuple):
    """What is measured of an edit. background: its PSNR in dB, None where everything may change."""

    success: bool
    background: float | None

    @classmethod
    def of_row(cls, row: Mapping[str, Any]) -> "Measured":
        return cls(bool(row["success"]), row["psnr"])


def run_edits(plans: Sequence[tuple[Case, Plan]], folder: Path, edits: Path, steps: int) -> dict[str, Measured]:
    """Case -> what is measured of the edits that plans are; unfinished cases run. edits: of `bench-edits`."""
    pipe, files = minip2p.load(), result_files(folder)
    networks = Networks(Judge.load())
    done = read_json(edits / "bench.json")
    if (done.get("model"), done.get("steps")) != (pipe.components.fingerprint, steps):
        raise ValueError(f"{edits}: its edits are by another model or in another number of steps than {steps}")
    files.claim(
        {
            "model": pipe.components.fingerprint,
            "steps": steps,
            "cases": [f"{case.description} | {plan.to_json()}" for case, plan in plans],
        }
    )
    for case, plan in tqdm([pair for pair in plans if not files.is_done(pair[0], METHOD)]):
        before = fit_image(read_image(case.picture), training_size(pipe), "stretch")
        counter, began = RowCounter(), time.perf_counter()
        counting = pipe.counting(counter)
        after = counting.edit(counting.invert(before, case.source, method="direct", steps=steps), plan).picture
        cost = {"rows": float(counter.rows), "seconds": time.perf_counter() - began}
        files.write(case, METHOD, measure_edit(case, before, after, networks) | cost, after, plan.to_json())
    rows = files.read([case for case, _ in plans], [METHOD])
    return {str(row["case"]): Measured.of_row(row) for row in rows}


def main() -> int:
    """Runs the exam from the command line and returns the exit status."""
    parser = argparse.ArgumentParser(description="Instructions end to end.")
    parser.add_argument("--edits", type=Path, metavar="FOLDER", help="results of bench-edits by direct and direct+mask")
    parser.add_argument("--weights", metavar="FOLDER", help="of the planner (default: weights/planner)")
    parser.add_argument("--steps", type=positive_int, default=STEPS, help=f"(default {STEPS})")
    parser.add_argument("-o", "--out", type=Path, default=Path("instructions"), help="the folder of the edits")
    args = parser.parse_args()

    def work() -> None:
        cases, tagger = read_cases(), Tagger.load(args.weights)
        sentences = {case.name: instruction_for(case, n // len(KINDS)) for n, case in enumerate(cases)}
        plans = {case.name: plan_or_none(tagger, sentences[case.name], case.source) for case in cases}
        found_as = {case.name: agreement(plans[case.name], case) for case in cases}
        levels = ("exact", "articles", "meaning", "other", "refused")
        print(f"| kind | cases | {' | '.join(levels)} |")
        for kind in (*KINDS, "all"):
            names = [case.name for case in cases if kind in (case.kind, "all")]
            counts = [sum(found_as[name] == level for name in names) for level in levels]
            print(f"| {kind} | {len(names)} | {' | '.join(map(str, counts))} |")
        for case in cases:
            plan = plans[case.name]
            if found_as[case.name] in ("other", "refused"):
                print(f"{case.name}: {sentences[case.name]} | {case.source} | {plan and plan.target}")
        figures = {f"plans_{level}": sum(value == level for value in found_as.values()) for level in levels}
        if args.edits:
            files, methods = result_files(args.edits), ("direct", "direct+mask")
            cases = [case for case in cases if all(files.is_done(case, method) for method in methods)]
            measured = {(row["method"], row["case"]): Measured.of_row(row) for row in files.read(cases, methods)}
            true = {case.name: measured["direct", case.name] for case in cases}
            told, changed = dict.fromkeys(true, Measured(False, None)), []
            for case in cases:
                plan = plans[case.name]
                if plan is not None and (method := method_of(plan, case)) is not None:
                    told[case.name] = measured[method, case.name]
                elif plan is not None:
                    changed.append((case, plan))
            told |= run_edits(changed, args.out, args.edits, args.steps)
            print("| kind | cases | true captions | background | instructions | background |")
            for kind in (*KINDS, "all"):
                names = [case.name for case in cases if kind in (case.kind, "all")]
                sides = [[edits_of[n] for n in names] for edits_of in (true, told)]
                cells = [f"{sum(m.success for m in side)} | {mean(m.background for m in side):.1f}" for side in sides]
                print(f"| {kind} | {len(names)} | {' | '.join(cells)} |")
            figures |= {
                "edits": len(true),
                "success_true": sum(m.success for m in true.values()),
                "success_told": sum(m.success for m in told.values()),
            }
        print_figures(figures)

    return run_guarded(work)


if __name__ == "__main__":
    raise SystemExit(main())
