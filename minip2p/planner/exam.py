"""Measures the tagger: `python -m minip2p.planner.exam tests/data/instructions.json`.

Synthesised instructions are right where the plan is the one that the true marks give. Those of a file are right where
the plan has the kind, and a target or an effect, that the file states; what has no kind is to be refused.
"""

import argparse
import random
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from minip2p.errors import run_guarded
from minip2p.io.files import read_json_value
from minip2p.planner.plan import Plan
from minip2p.planner.planners import MIN_CONFIDENCE
from minip2p.planner.rules import write_plan
from minip2p.planner.tagger import Reading, Tagger
from minip2p.planner.templates import make_example
from minip2p.text.prompt import split_words

COUNT = 2000  # synthesised instructions of either kind


def plan_or_none(tagger: Tagger, instruction: str, caption: str, least: float = MIN_CONFIDENCE) -> Plan | None:
    """The plan; None where the planner refuses."""
    try:
        reading = tagger(instruction, caption)
        return write_plan(reading, caption) if reading.confidence >= least else None
    except ValueError:
        return None


def share_exact(tagger: Tagger, count: int, *, held_out: bool, seed: int = 1) -> float:
    """The share of synthesised instructions whose plan is that of their true marks."""
    rng, right, total = random.Random(seed), 0, 0
    while total < count:
        example = make_example(rng, held_out=held_out)
        try:
            truth = write_plan(Reading(example.words, example.intent, example.tags), example.caption)
        except ValueError:
            if example.intent not in ("several", "other"):
                continue  # the rules have no plan for it, so the tagger cannot be right
            truth = None
        total += 1
        right += plan_or_none(tagger, " ".join(example.words), example.caption) == truth
    return right / count


def is_right(plan: Plan | None, case: Mapping[str, Any]) -> bool:
    """Whether a plan is what a case of a file states: kind; "targets", or "expects", as "move=cat:left"."""
    if plan is None or case["kind"] is None:
        return plan is None and case["kind"] is None
    if "targets" in case:
        return split_words(plan.target) in [split_words(target) for target in case["targets"]]
    field, _, effect = case["expects"].partition("=")
    done = effect_of(plan, field)
    return effect in (done, done.partition(":")[0])


def effect_of(plan: Plan, field: str) -> str:
    """What a plan does to its word, in the form of a case."""
    values = getattr(plan, field)
    if len(values) != 1:
        return ""
    (word,) = values
    if field == "remove":
        return str(word)
    if field in ("reweight", "resize"):
        return f"{word}{'+' if values[word] > 1 else '-'}"
    x, y = values[word]
    side = ("right" if x > 0 else "left") if abs(x) > abs(y) else ("down" if y > 0 else "up")
    return f"{word}:{side}"


def measure(tagger: Tagger, cases: Sequence[Mapping[str, Any]], count: int = COUNT) -> dict[str, float]:
    """Shares in percent, and the processor's time for a plan."""
    plans = [plan_or_none(tagger, case["instruction"], case["caption"]) for case in cases]
    right = [is_right(plan, case) for plan, case in zip(plans, cases, strict=True)]
    answered = [ok for ok, plan in zip(right, plans, strict=True) if plan is not None]
    begin = time.process_time()
    for case in cases:
        plan_or_none(tagger, case["instruction"], case["caption"])
    seconds = time.process_time() - begin
    return {
        "templates seen, %": 100 * share_exact(tagger, count, held_out=False),
        "templates held out, %": 100 * share_exact(tagger, count, held_out=True),
        f"instructions of the file, % of {len(cases)}": 100 * sum(right) / len(cases),
        f"… of the {len(answered)} that it answers, %": 100 * sum(answered) / max(len(answered), 1),
        "ms a plan": 1000 * seconds / len(cases),
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the exam from the command line."""
    parser = argparse.ArgumentParser("python -m minip2p.planner.exam", description="measure the tagger of the planner")
    parser.add_argument("file", metavar="FILE", help="instructions with what they ask for (JSON)")
    parser.add_argument("--weights", metavar="FOLDER", help="(default: weights/planner)")
    parser.add_argument("--wrong", action="store_true", help="print the instructions that are not right as well")
    args = parser.parse_args(argv)

    def work() -> None:
        tagger, cases = Tagger.load(args.weights), read_json_value(Path(args.file))
        for name, value in measure(tagger, cases).items():
            print(f"{name:<40} {value:.1f}")
        for case in cases if args.wrong else ():
            plan = plan_or_none(tagger, case["instruction"], case["caption"])
            if not is_right(plan, case):
                print(f"{case['instruction']} | {case['caption']} | {plan and (plan.kind, plan.target)}")

    return run_guarded(work)


if __name__ == "__main__":
    raise SystemExit(main())
