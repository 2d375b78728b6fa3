"""Instructions on the command line: `minip2p plan` prints a plan, and `minip2p edit --tell` follows one."""

from argparse import Namespace
from collections.abc import Iterator

from minip2p.cli.options import OBJECT_OPTIONS
from minip2p.p2p.options import EditOptions
from minip2p.planner.plan import Plan
from minip2p.planner.planners import plan as make_plan

PLANNED = ("cross_replace", "self_replace", "kind", "reweight", "local_blend", "threshold", "mask", *OBJECT_OPTIONS)


def plan(args: Namespace) -> Iterator[None]:
    """Prints the plan of an instruction as JSON."""
    made_plan = make_plan(args.instruction, args.caption, by=args.by, by_model=args.by_model)
    yield
    print(made_plan.to_json())


def check_instruction(args: Namespace) -> None:
    """Ends the program without targets and without --tell. Raises ValueError for options that do not go with --tell."""
    flags = args.parser.flags
    if args.tell is None:
        if not args.targets:
            args.parser.error("the following arguments are required: TARGET, or an instruction with --tell")
        if unused := [flags[name] for name in ("by", "by_model") if getattr(args, name) is not None]:
            raise ValueError(f"{unused[0]} is a planner for --tell, which is missing")
        return
    if args.targets:
        raise ValueError("--tell makes the target from the instruction: leave TARGET out, or --tell")
    if unused := [flags[name] for name in PLANNED if getattr(args, name)]:
        raise ValueError(f"{unused[0]} is what the plan of --tell says: leave it out, or give a TARGET")


def follow_instruction(args: Namespace, caption: str) -> Plan:
    """The plan of --tell for a picture of this caption. Its target becomes the command's."""
    made_plan = make_plan(args.tell, caption, by=args.by, by_model=args.by_model)
    args.targets = [made_plan.target]
    return made_plan


def write_arguments(args: Namespace, planned: EditOptions) -> None:
    """Sets the options of `edit` to what a plan gives, as they are typed: pictures have them in their text."""
    args.cross_replace, args.self_replace = [share_text(planned.cross_replace)], share_text(planned.self_replace)
    args.reweight = [f"{word}={weight:g}" for word, weight in (planned.reweight or {}).items()]
    args.resize = [f"{word}:{factor:g}" for word, factor in (planned.resize or {}).items()]
    args.remove = planned.remove or []
    for name, shifts in (("move", planned.move), ("duplicate", planned.duplicate)):
        vars(args)[name] = [f"{word}:{x:g},{y:g}" for word, (x, y) in (shifts or {}).items()]
    if (blend := planned.local_blend) is not None:
        args.local_blend, args.threshold = ":".join((*blend.source, *blend.target)), blend.threshold


def share_text(share: object) -> str:
    """A step share as it is typed: "0.8", "0.2:0.8"."""
    return ":".join(map(str, share)) if isinstance(share, tuple) else str(share)
