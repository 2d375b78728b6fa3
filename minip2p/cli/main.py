"""The command `minip2p`: its parser, and the dispatch to the module that does the work.

Only argparse and the error messages are imported here. The library is imported after the arguments have been parsed, so
that --help is quick, and of it only what the command needs. For the same reason most options have no default in the
parser: an option that is not given is left to the library, and a test compares the defaults in the help texts with the
library's.
"""

import argparse
import os
import re
import signal
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from difflib import get_close_matches
from importlib import import_module
from itertools import takewhile
from types import MappingProxyType
from typing import Any, NoReturn, TypeAlias

from minip2p.cli.threads import choose_threads, wait_passively
from minip2p.errors import escape_unprintable, fail, held_notices, run_guarded

EPILOG = """output files:
  -o FOLDER    into the folder, which is created if needed; the names start
               with the prompt and the seed
  -o FILE.png  to this file, and further pictures next to it; their names start
               with FILE
Each PNG stores its settings in the text chunk "parameters". Existing files are
replaced only with --overwrite.

examples, which run in this order:
  minip2p demo
  minip2p words
  minip2p app
  minip2p generate "a cat on the beach" --seed 1
  minip2p generate "a cat on the beach" --seed random --count 4
  minip2p show out/a-cat-on-the-beach-seed1.png
  minip2p maps "a cat on the beach" --seed 1 -o maps
  minip2p edit "a cat on the beach" "a tiger on the beach" --seed 1
  minip2p edit "a red car on the street" "a blue car on the street" \\
    --cross .6 --cross blue=0 --blend car
  minip2p plan "make the cat a tiger" --caption "a cat on the beach"
  minip2p edit "a house in the fog" "a house in the fog" \\
    --reweight fog=2 --reweight house=.5
  minip2p generate "a cat on the beach" --seed 2 --record cat.safetensors
  minip2p edit cat.safetensors "a tiger on the beach"
  minip2p edit cat.safetensors "a cat on the beach" --move cat:24,0 -o moved
  minip2p invert out/a-cat-on-the-beach-seed1.png "a cat on the beach" \\
    -o photo.safetensors
  minip2p edit photo.safetensors "a tiger on the beach"
  minip2p edit out/a-cat-on-the-beach-seed1.png "a dog on the beach" \\
    --prompt "a cat on the beach" --blend cat:dog --paste
  minip2p bench-edits --count 7 --steps 20
  minip2p bench-moves --count 7

with files of your own:
  minip2p sweep GRID.toml -o sweep
  minip2p pairs PROMPTS.jsonl -o pairs
  minip2p instruct PHOTO.jpg "make it snow" --model PATH
  minip2p inpaint PHOTO.jpg "a cat on the beach" --mask MASK.png --model PATH
"""


STEPS = "50, or 4 where the scheduler is LCM"  # the default of --steps
TEXT_OPTIONS = ("--negative", "--prompt", "--tell", "--caption")  # whose value may begin with a hyphen

# Words in the options of other tools, and ours: --num_inference_steps and --cfg-scale are --steps and --guidance.
OTHER_NAMES: Mapping[str, str] = MappingProxyType(
    {
        "cfg": "guidance",
        "scale": "guidance",
        "height": "size",
        "width": "size",
        "checkpoint": "model",
        "ckpt": "model",
        "output": "out",
        "outdir": "out",
        "batch": "count",
        "iter": "count",
        "images": "count",
        "samples": "count",
    }
)

Group: TypeAlias = argparse._ArgumentGroup
Commands: TypeAlias = "argparse._SubParsersAction[Parser]"


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that reports an error in one line, and an unknown option before all other mistakes.

    The `dest` of an option is the keyword of the library that it sets.
    """

    @property
    def flags(self) -> dict[str, str]:
        """Keyword -> the option that sets it: guidance_scale -> --guidance; or the name of an argument in the usage."""
        return {
            action.dest: action.option_strings[-1] if action.option_strings else str(action.metavar)
            for action in self._actions
        }

    def error(self, message: str) -> NoReturn:
        message = message.removeprefix("argument ")
        if match := re.fullmatch(r"(.+): invalid choice: '(.*)' \(choose from (.*)\)", message):
            choices = re.findall(r"[\w-]+", match[3])
            similar = get_close_matches(match[2], choices, 1)
            hint = f"did you mean {similar[0]}?" if similar else f"there are {', '.join(choices)}"
            message = f"{match[1]}: there is no {match[2]!r}: {hint}"
        sys.exit(fail(f"{message}{' See' if message.endswith('?') else '; see'} {self.prog} --help"))

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse does it, except that unknown options and surplus arguments are errors of the command itself.

        Argparse would report `--maks` as a missing --mask, and read `-outdir` as `-o utdir`.
        """
        arguments = takewhile(lambda text: text != "--", args)
        if self._subparsers is not None:  # the options of the command follow its name
            arguments = takewhile(lambda text: text.startswith("-"), arguments)
        for text in arguments:
            self.check_option(text)
        known, surplus = super().parse_known_args(args, namespace)
        if surplus:
            is_words = any("PROMPT" in name for name in self.flags.values()) and re.fullmatch(r"[^\W\d]+", surplus[0])
            hint = "; a prompt of several words needs quotes" if is_words else ""
            self.error(f"too many arguments, from {surplus[0]!r} on{hint}")
        return known, surplus

    def check_option(self, text: str) -> None:
        """Ends the program with an error if an argument is written as an option and there is no such option."""
        name, options = text.partition("=")[0], [flag for flag in self._option_string_actions if flag.startswith("--")]
        is_option = re.match(r"-[^\d.\s]", name) and " " not in name and name not in self._option_string_actions
        is_attached = name.startswith("-o") and not any(f"-{name}".startswith(flag) for flag in options)
        if not is_option or is_attached:
            return
        words = [OTHER_NAMES.get(word, word) for word in re.split(r"[-_]", name.strip("-").lower())]
        similar = [flag for flag in options if set(words).intersection(flag.strip("-").split("-"))]
        others = [command for command, sub in subparsers(parser()).items() if name in sub.flags.values()]
        if not similar and not others and len(name.strip("-")) > 1:
            similar = get_close_matches(f"--{name.strip('-').lower()}", options, 1)
        message = f"{self.prog} has no option {name}"
        if similar:
            message += f": did you mean {' or '.join(similar)}?"
        elif self._subparsers is not None:
            message += ": options follow the name of the command"
        elif others:
            message += f", which {', '.join(others)} {'have' if len(others) > 1 else 'has'}"
        elif not name.startswith("--"):
            message += ": write -- before arguments that begin with a hyphen, or ./ before such a file"
        self.error(message)


def subparsers(top: Parser) -> dict[str, Parser]:
    """Name -> parser of every command."""
    (action,) = (action for action in top._actions if isinstance(action, argparse._SubParsersAction))
    return dict(action.choices)


def whole_number(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a whole number, not {text!r}") from None


def number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a number, not {text!r}") from None


def parser() -> Parser:
    """The whole command line. The parsed `module` and `command` name the function that does the work."""
    top = Parser(
        "minip2p",
        description="Generate pictures, edit them by editing their prompts, see where words look.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    top.add_argument("--version", action="version", version=f"minip2p {import_module('minip2p').__version__}")
    commands = top.add_subparsers(metavar="COMMAND", dest="command", required=True)
    add_demo(commands)
    add_generate(commands)
    add_edit(commands)
    add_plan(commands)
    add_invert(commands)
    add_instruct(commands)
    add_inpaint(commands)
    add_maps(commands)
    add_show(commands)
    add_words(commands)
    add_app(commands)
    add_sweep(commands)
    add_pairs(commands)
    add_bench_edits(commands)
    add_bench_moves(commands)
    return top


def add_command(commands: Commands, name: str, description: str, module: str = "commands") -> Parser:
    """Adds a subcommand. module: the module of `minip2p.cli` with the function that does its work."""
    sub = commands.add_parser(name, help=description, description=description, allow_abbrev=False)
    sub.set_defaults(module=module, parser=sub)
    return sub


def add_demo(commands: Commands) -> None:
    sub = add_command(commands, "demo", "show in five pictures what the model that ships can do", module="demo")
    sub.add_argument("-o", "--out", default="out", metavar="FOLDER", help="the folder of the pictures (default: out)")
    add_overwrite_option(sub)


def add_generate(commands: Commands) -> None:
    sub = add_command(commands, "generate", "generate a picture from a prompt")
    sub.add_argument("prompt", metavar="PROMPT")
    add_record_option(add_output_options(sub))
    add_run_options(sub)
    add_model_options(sub)


def add_edit(commands: Commands) -> None:
    sub = add_command(commands, "edit", "edit a generated picture or a photograph by editing its prompt")
    sub.add_argument(
        "source",
        metavar="SOURCE",
        help="the prompt of the picture to edit; the file of a run (.safetensors); or, with --prompt, a photograph",
    )
    sub.add_argument("targets", metavar="TARGET", nargs="*", help="the prompt of the edited picture")
    instruction = sub.add_argument_group("instruction instead of TARGET")
    instruction.add_argument("--tell", metavar="TEXT", help='what to change: "make the cat a tiger"; prints the plan')
    add_planner_options(instruction)
    group = add_output_options(sub)
    group.add_argument(
        "--paste",
        action="store_true",
        help="keep the pixels of the source outside of the --blend or --mask. Without it they differ a little: the VAE "
        "decodes the changed latents, and a pixel depends on its neighbours; a photograph is the VAE's version of it",
    )
    group.add_argument(
        "--no-compare", action="store_true", help="save the run without Prompt-to-Prompt, which the strip shows"
    )
    add_edit_options(sub)
    add_photo_options(sub)
    add_run_options(sub)
    add_model_options(sub)


def add_plan(commands: Commands) -> None:
    sub = add_command(commands, "plan", "print what an instruction asks for, as the plan of an edit (JSON)", "planning")
    sub.add_argument("instruction", metavar="INSTRUCTION", help='what to change, as "make the cat a tiger"')
    sub.add_argument("--caption", required=True, metavar="TEXT", help="what the picture shows: its prompt")
    add_planner_options(sub)


def add_invert(commands: Commands) -> None:
    sub = add_command(commands, "invert", "turn a photograph into a run, which edit accepts like a generated one")
    sub.add_argument("picture", metavar="IMAGE")
    sub.add_argument("prompt", metavar="PROMPT", help="what the photograph shows")
    sub.add_argument(
        "-o",
        "--out",
        default="out/run.safetensors",
        metavar="FILE",
        help="the run's file (.safetensors); its picture is written next to it as a PNG (default: out/run.safetensors)",
    )
    add_overwrite_option(sub)
    inversion = sub.add_argument_group("inversion")
    add_inversion_options(inversion)
    inversion.add_argument(
        "--seed", type=whole_number, metavar="N", help="seed of the noise of edit-friendly and virtual (default: 0)"
    )
    add_run_options(sub, seed=False)
    add_model_options(sub)


def add_instruct(commands: Commands) -> None:
    sub = add_command(commands, "instruct", "edit a picture by an instruction, with a model such as InstructPix2Pix")
    sub.add_argument("picture", metavar="IMAGE")
    sub.add_argument("prompt", metavar="INSTRUCTION", help='what to do, as "make it snow"')
    add_record_option(add_output_options(sub))
    run = add_run_options(sub)
    run.add_argument(
        "--picture-guidance",
        dest="image_guidance_scale",
        type=number,
        metavar="W",
        help="image guidance scale: how close to IMAGE; --guidance: how strong the instruction (default: 1.5)",
    )
    add_fit_option(run)
    add_model_options(sub, default="tiny-instruct")


def add_inpaint(commands: Commands) -> None:
    sub = add_command(commands, "inpaint", "regenerate a picture where a mask is white, with an inpainting model")
    sub.add_argument("picture", metavar="IMAGE")
    sub.add_argument("prompt", metavar="PROMPT", help="what the picture should show")
    sub.add_argument("--mask", required=True, metavar="IMAGE", help="white where the picture is regenerated")
    add_record_option(add_output_options(sub))
    add_fit_option(add_run_options(sub))
    add_model_options(sub)


def add_maps(commands: Commands) -> None:
    sub = add_command(commands, "maps", "show the heat map of each word of a picture's prompt, all on one scale")
    sub.add_argument(
        "source",
        metavar="SOURCE",
        help="the prompt of the picture to generate; the file of a run (.safetensors); or, with --prompt, a photograph",
    )
    add_output_options(sub)
    add_photo_options(sub)
    add_run_options(sub)
    add_model_options(sub)


def add_show(commands: Commands) -> None:
    sub = add_command(commands, "show", "print the settings that are stored in pictures and in files of runs", "show")
    sub.add_argument("file", metavar="FILE", nargs="+", help="a PNG, or the file of a run (.safetensors)")


def add_words(commands: Commands) -> None:
    add_command(commands, "words", "list the words that the model that ships knows", "show")


def add_app(commands: Commands) -> None:
    sub = add_command(
        commands, "app", "look at attention and edit pictures on a page in the browser (needs minip2p[web])", "app"
    )
    sub.add_argument(
        "--host",
        default="127.0.0.1",
        help="the address to serve; with any but this computer's, others who know the token can use the page "
        "(default: 127.0.0.1)",
    )
    sub.add_argument("--port", type=whole_number, default=7860, help="0 takes one that is free (default: 7860)")
    sub.add_argument(
        "--token",
        help="what visitors must know: 16 letters and digits or more (default: none on this computer, else random)",
    )
    sub.add_argument("--no-browser", action="store_true", help="do not open the page in a browser")
    sub.add_argument(
        "--export",
        metavar="FOLDER",
        help="serve nothing; write the page with precomputed examples into a new folder, for any web server",
    )
    add_model_options(sub)


def add_sweep(commands: Commands) -> None:
    sub = add_command(
        commands,
        "sweep",
        "run every edit of a grid; write a table, contact sheets and charts (needs minip2p[sweep])",
        "experiments",
    )
    sub.add_argument("grid", metavar="GRID", help="a TOML file: the source, the values to compare, settings of the run")
    sub.add_argument("-o", "--out", default="out", metavar="FOLDER", help="the folder of the results (default: out)")
    sub.add_argument(
        "--clip",
        metavar="FOLDER",
        help="a CLIP that scores the edits (default: the judge for the models that ship, else no score)",
    )
    add_shard_options(sub, "seeds")
    add_model_options(sub)


def add_pairs(commands: Commands) -> None:
    sub = add_command(
        commands, "pairs", "make pairs of pictures that train an editor by instructions (needs minip2p[sweep])", "pairs"
    )
    sub.add_argument(
        "prompts",
        metavar="PROMPTS",
        help='a JSON line for each edit: "input", a caption; "edit", the instruction; "output", the edited caption; '
        'and perhaps "kind". python -m minip2p.pairs.prompts writes such files',
    )
    sub.add_argument(
        "-o",
        "--out",
        default="out/pairs",
        metavar="FOLDER",
        help="the folder of the results; an interrupted run continues there (default: out/pairs)",
    )
    sub.add_argument(
        "--format",
        dest="formats",
        default="parquet",
        metavar="A,B",
        help="of the data set: parquet, imagefolder, webdataset (default: parquet)",
    )
    add_shard_options(sub, "sources")
    group = sub.add_argument_group("pairs (the defaults are for the model that ships)")
    group.add_argument(
        "--preset",
        choices=("instruct-pix2pix", "emu-edit"),
        help="other defaults: those published for InstructPix2Pix, or masks as Emu Edit has them (default: neither)",
    )
    group.add_argument("--seed", type=whole_number, help="of all draws (default: 0)")
    group.add_argument("--samples", type=whole_number, metavar="N", help="samples of each source (default: 8)")
    group.add_argument("--steps", type=whole_number, help=f"number of steps (default: {STEPS})")
    group.add_argument("--size", metavar="HxW", help="rows x columns in pixels (default: the model's)")
    ranges = {
        "guidance": "guidance scale, drawn for each sample (default: 3:6)",
        "cross_replace": "share of the steps with the source's cross-attention, drawn for each pair (default: .1:.9)",
        "self_replace": "the same for self-attention, at the same place of its range (default: .1:.9)",
    }
    for name, text in ranges.items():
        group.add_argument(f"--{name.split('_')[0]}-range", dest=name, metavar="LOW:HIGH", help=text)
    group.add_argument(
        "--self-max-queries",
        type=whole_number,
        metavar="N",
        help="self-attention is shared only where it has at most N queries (default: 1024)",
    )
    group.add_argument(
        "--masks",
        metavar="A,B",
        help="a candidate for each: none; tight, where the words that go have attention before the edit; grown; box, "
        "its bounding box. The edit stays in it (default: none)",
    )
    group.add_argument(
        "--mask-threshold", metavar="T", help="of the words' heat maps, as --threshold of edit (default: otsu)"
    )
    group.add_argument(
        "--grow", type=number, metavar="SHARE", help="by which grown is larger, of the root of the area (default: .25)"
    )
    group.add_argument("--keep", type=whole_number, metavar="N", help="pairs of each edit, the best (default: 1)")
    group.add_argument(
        "--clip",
        metavar="FOLDER",
        help="a CLIP that filters the pairs (default: the losses of the model itself, and the background)",
    )
    group.add_argument(
        "--noises", type=whole_number, metavar="N", help="noises at which the model's losses are taken (default: 8)"
    )
    group.add_argument(
        "--least",
        action="append",
        default=[],
        metavar="SCORE=VALUE",
        help="what a score must be at least: clip_image, clip_source, clip_target, clip_direction; fits_source, "
        "fits_target; psnr, of the background. Or none, for all or for one. May be repeated (default: with --clip .7 "
        "and three times .2, without it 0, 0 and 10)",
    )
    group.add_argument(
        "--for",
        dest="kinds",
        action="append",
        default=[],
        metavar="KIND:NAME=VALUE",
        help="another value for one kind of edit, of a score or of cross-range, self-range, self-max-queries, masks, "
        "grow, keep. May be repeated (default: all kinds alike)",
    )
    add_model_options(sub)


def add_bench_edits(commands: Commands) -> None:
    sub = add_command(
        commands, "bench-edits", "measure edits of photographs, 301 of which ship (needs minip2p[sweep])", "experiments"
    )
    add_benchmark_options(sub, "vae,ddim,direct,direct+mask", steps=STEPS, out="out/bench")
    sub.add_argument(
        "--cases",
        metavar="FOLDER",
        help="cases in PIE-Bench's layout, run with its settings where there are any (default: those that ship)",
    )
    sub.add_argument("--clip", metavar="FOLDER", help="a CLIP that scores the edits as well")
    sub.add_argument("--lpips", metavar="FILE", help="weights of LPIPS with SqueezeNet, which measures them as well")
    sub.add_argument("--dino", metavar="FOLDER", help="a DINO, whose structure distance measures them as well")
    add_model_options(sub)


def add_bench_moves(commands: Commands) -> None:
    sub = add_command(
        commands,
        "bench-moves",
        "measure moves of objects against true results, 301 of which ship (needs minip2p[sweep])",
        "experiments",
    )
    add_benchmark_options(sub, "vae,paste,move", steps="20", out="out/bench-moves")
    sub.add_argument(
        "--cases",
        metavar="FOLDER",
        help="cases of python -m minip2p.evaluation.make_move_cases (default: those that ship)",
    )
    add_model_options(sub)


def add_benchmark_options(sub: Parser, methods: str, *, steps: str, out: str) -> None:
    sub.add_argument(
        "--methods", default=methods, metavar="A,B", help=f"the methods to compare, or all (default: {methods})"
    )
    sub.add_argument("--count", type=whole_number, metavar="N", help="run only the first N cases")
    sub.add_argument("--steps", type=whole_number, help=f"number of DDIM steps (default: {steps})")
    sub.add_argument(
        "-o",
        "--out",
        default=out,
        metavar="FOLDER",
        help=f"the folder of the results; an interrupted benchmark continues there (default: {out})",
    )
    add_shard_options(sub, "cases")


def add_shard_options(sub: Parser, units: str) -> None:
    group = sub.add_mutually_exclusive_group()
    group.add_argument(
        "--shard",
        metavar="I/N",
        help=f"run only the I-th of N parts of the {units}, as 3/8, and write no table; -o may be the folder of all",
    )
    group.add_argument(
        "--join",
        nargs="*",
        metavar="FOLDER",
        help="run nothing: write the tables of all shards, with the results of those that ran in other FOLDERs",
    )
    group.add_argument(
        "--ray",
        nargs="?",
        const="local",
        metavar="ADDRESS",
        help=f"share the {units} among the CPUs, with --device cuda the GPUs, of the Ray cluster at ADDRESS "
        "(host:port, or auto for the one that runs here); without ADDRESS, of this machine (needs minip2p[ray])",
    )


# --- groups of options that several commands share


def add_output_options(sub: Parser) -> Group:
    group = sub.add_argument_group("output")
    group.add_argument("-o", "--out", default="out", metavar="OUT", help="a folder, or a .png file (default: out)")
    add_overwrite_option(group)
    return group


def add_overwrite_option(group: Parser | Group) -> None:
    group.add_argument("--overwrite", action="store_true", help="replace files that exist already")


def add_record_option(group: Group) -> None:
    group.add_argument("--record", metavar="FILE", help="save the run to this file (.safetensors), to be edited later")


def add_run_options(sub: Parser, seed: bool = True) -> Group:
    group = sub.add_argument_group("run")
    if seed:
        group.add_argument(
            "--seed", help="seed of the noise (default: 0); several as 1,2,3; random draws one and prints it"
        )
        group.add_argument("--count", type=whole_number, metavar="N", help="run N seeds, counted on from --seed")
    group.add_argument(
        "--steps",
        type=whole_number,
        help=f"number of steps (default: {STEPS}): 1 to 1000; 1 to 50 for most LCM models",
    )
    group.add_argument(
        "--guidance",
        dest="guidance_scale",
        type=number,
        metavar="W",
        help="classifier-free guidance scale (default: the model's)",
    )
    group.add_argument(
        "--guidance-interval",
        metavar="START:END",
        help="an approximation that saves time: guidance only from START to END of the steps, as .1:.8",
    )
    group.add_argument(
        "--uncond-every",
        type=whole_number,
        metavar="N",
        help="an approximation that saves time: run the unconditional rows at every N-th step (default: 1)",
    )
    group.add_argument("--size", metavar="HxW", help="rows x columns in pixels (default: the model's)")
    group.add_argument(
        "--negative",
        dest="negative_prompt",
        metavar="PROMPT",
        help="negative prompt: what the picture should not show",
    )
    group.add_argument(
        "--clip-skip",
        type=whole_number,
        metavar="N",
        help="read the text encoder N - 1 layers before the model's own (default: 1), counted as in A1111's web UI; in "
        "diffusers the same is clip_skip = N - 1",
    )
    return group


def add_planner_options(group: Parser | Group) -> None:
    group.add_argument(
        "--by",
        metavar="URL|FOLDER",
        help="plan by a language model: of an OpenAI-compatible server, as http://localhost:11434/v1, with a key from "
        "OPENAI_API_KEY; or of a folder of transformers (default: the planner that ships)",
    )
    group.add_argument("--by-model", metavar="NAME", help="the model of --by URL (default: the only one that it has)")


def add_edit_options(sub: Parser) -> None:
    group = sub.add_argument_group("edit")
    group.add_argument(
        "--kind",
        choices=("auto", "swap", "refine"),
        help="swap: words are replaced; refine: words are added or removed (default: auto, from the prompts)",
    )
    group.add_argument(
        "--cross",
        dest="cross_replace",
        action="append",
        metavar="[WORD=]SHARE",
        help="the share of the steps, from the first, at which the target takes the source's cross-attention "
        "(default: 0.8); START:END for an interval, START:END:OUT to fade out from END to OUT; cat=.4 for one word of "
        "the target. May be repeated",
    )
    group.add_argument(
        "--self", dest="self_replace", metavar="SHARE", help="the same for self-attention (default: 0.4)"
    )
    group.add_argument(
        "--reweight",
        action="append",
        default=[],
        metavar="WORD=WEIGHT",
        help="strengthen (2) or weaken (.5, 0, -1) a word of the target. May be repeated",
    )
    group.add_argument(
        "--blend",
        dest="local_blend",
        metavar="WORD[:WORD]",
        help="local blending: only this word's place may change; source:target if the target has another word there",
    )
    group.add_argument(
        "--threshold",
        metavar="T",
        help="threshold of --blend: a share of the heat map's maximum (default: 0.3), otsu, 85%% (higher than so many "
        "percent of the pixels), or LOW:HIGH for a soft mask",
    )
    group.add_argument("--mask", metavar="IMAGE", help="instead of --blend: only what is white in IMAGE may change")
    group.add_argument(
        "--within",
        dest="region",
        metavar="IMAGE",
        help="edit the attention only where IMAGE is white; elsewhere it remains the source's in all steps",
    )
    group.add_argument(
        "--move",
        action="append",
        default=[],
        metavar="WORD:X,Y",
        help="move the object that a word of the source names, by X pixels to the right and Y down, as cat:-32,16. Of "
        "several objects the last is in front. May be repeated",
    )
    group.add_argument(
        "--resize",
        action="append",
        default=[],
        metavar="WORD:FACTOR",
        help="change an object's size, as cat:1.5, also of one that is moved. May be repeated",
    )
    group.add_argument(
        "--duplicate",
        action="append",
        default=[],
        metavar="WORD:X,Y",
        help="show an object a second time, X pixels to the right and Y down. May be repeated",
    )
    group.add_argument(
        "--remove", action="append", default=[], metavar="WORD", help="remove an object. May be repeated"
    )
    group.add_argument(
        "--explicit", action="store_true", help="compute the attention maps, as in the paper; the result is the same"
    )


def add_photo_options(sub: Parser) -> None:
    photo = sub.add_argument_group("photograph as the source")
    photo.add_argument("--prompt", metavar="PROMPT", help="SOURCE is a photograph, and PROMPT describes it")
    add_inversion_options(photo)


def add_inversion_options(group: Group) -> None:
    group.add_argument(
        "--method",
        metavar="METHOD",
        choices=("ddim", "direct", "negative-prompt", "proximal", "null-text", "edit-friendly", "virtual"),
        help="method of inversion: ddim, direct, negative-prompt, proximal, null-text, edit-friendly or virtual "
        "(default: direct, which reconstructs the VAE's version of the photograph exactly)",
    )
    group.add_argument(
        "--fast",
        action="store_const",
        const=True,
        help="few rows of the UNet: --method virtual, which inverts nothing, in 15 steps, or 4 with the scheduler lcm; "
        "--steps changes that",
    )
    group.add_argument(
        "--skip",
        type=number,
        metavar="SHARE",
        help="the first steps that edits take from the photograph unchanged, as a share of the run, for edit-friendly "
        "(.24 if not given) and virtual (0): the more, the weaker the edit",
    )
    add_fit_option(group)
    group.add_argument(
        "--polish",
        dest="vae_refine_steps",
        type=whole_number,
        metavar="N",
        help="updates that move the latents so that the VAE decodes them closer to the photograph (default: 0; "
        "20 help much)",
    )


def add_fit_option(group: Group) -> None:
    group.add_argument(
        "--fit", choices=("crop", "stretch"), help="how a picture or mask of another shape is fitted (default: crop)"
    )


def add_model_options(sub: Parser, default: str | None = None) -> None:
    """default: the name of a model that ships, or None for `tiny`."""
    group = sub.add_argument_group("model")
    shipped = f" (default: {default}, which ships)"
    if default is None:
        shipped = ", or tiny-fast, which ships and takes 4 --steps (default: the small model that ships)"
    group.add_argument(
        "--model",
        metavar="PATH",
        default=default,
        help=f"a folder in diffusers' layout, a .safetensors file, org/name on the hub{shipped}",
    )
    group.add_argument(
        "--config",
        metavar="PATH",
        help="for a single file: a folder or org/name with the configurations and tokenizers of its family",
    )
    group.add_argument("--vae", metavar="PATH", help="another VAE: a folder, a file, or org/name")
    group.add_argument(
        "--scheduler",
        choices=("ddim", "lcm"),
        help="how runs are sampled: ddim, or lcm for consistency models, such as a model with an LCM-LoRA, with 4 to 8 "
        "--steps (default: lcm where the model's configuration names LCMScheduler, else ddim)",
    )
    group.add_argument(
        "--lora", action="append", default=[], metavar="FILE[:SCALE]", help="merge a LoRA. May be repeated"
    )
    group.add_argument(
        "--embedding",
        action="append",
        default=[],
        metavar="FILE",
        help="add a word by textual inversion: the file's own word, or its name. May be repeated",
    )
    group.add_argument(
        "--dtype", choices=("float32", "float16", "bfloat16"), default="float32", help="(default: float32)"
    )
    group.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, mps (default: cpu)")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command. Returns 0; 2 after an error, which is one line on stderr; 130 after Ctrl-C.

    A command is a generator that yields once, after it has checked its arguments and before its work. No warning is
    shown before that. Exits with 143 after SIGTERM and 129 after SIGHUP.
    """
    escape_unprintable()
    if argv is None:  # a program of its own, whose threads are its own matter
        wait_passively()
    args = parser().parse_args(join_text_values(sys.argv[1:] if argv is None else argv))

    def work() -> None:
        import_module("minip2p.cli.paths").expand_paths(args)
        command = getattr(import_module(f"minip2p.cli.{args.module}"), args.command.replace("-", "_"))
        with exit_on_signals():
            stages = command(args)
            with held_notices():
                next(stages)
            if argv is None and args.module not in ("show", "planning"):
                choose_threads()
            for _ in stages:
                pass

    return run_guarded(work, args.parser.flags)


def join_text_values(arguments: Sequence[str]) -> list[str]:
    """The arguments, with a text that begins with a hyphen joined to its option, as argparse wants it.

    ["--negative", "-blurry"] -> ["--negative=-blurry"]. Options begin with two hyphens, except -o and -h.
    """
    joined: list[str] = []
    for text in arguments:
        is_text = text.startswith("-") and not text.startswith("--") and text not in ("-o", "-h")
        if joined and joined[-1] in TEXT_OPTIONS and is_text:
            joined[-1] += f"={text}"
        else:
            joined.append(text)
    return joined


@contextmanager
def exit_on_signals() -> Iterator[None]:
    """Lets SIGTERM and SIGHUP end the program by SystemExit, so that no temporary file is left behind."""

    def stop(number: int, _: object) -> NoReturn:
        with suppress(OSError):  # print may be called while another print is interrupted, and would raise an error
            os.write(2, b"minip2p: terminated\n")
        sys.exit(128 + number)

    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    if threading.current_thread() is not threading.main_thread():  # only there a handler can be set
        numbers = []
    changed = [number for number in numbers if signal.getsignal(number) == signal.SIG_DFL]  # nohup ignores SIGHUP
    for number in changed:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number in changed:
            signal.signal(number, signal.SIG_DFL)
