"""The command `minip2p`: its parser, and the dispatch to the module that does the work.

Only argparse and the error messages are imported here. The library is imported after the arguments have been parsed, so
that --help is quick, and of it only what the command needs. For the same reason most options have no default in the
parser: an option that is not given is left to the library, and a test compares the defaults in the help texts with the
library's.
"""

import argparse
import re
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import NoReturn, TypeAlias

from minip2p.cli.threads import choose_threads, wait_passively
from minip2p.errors import escape_unprintable, fail, run_guarded

EPILOG = """output files:
  -o FOLDER    into the folder, which is created if needed; the names start with the prompt and the seed
  -o FILE.png  to this file, and further pictures next to it; their names start with FILE
Each PNG stores its settings in the text chunk "parameters". Existing files are replaced only with --overwrite.

examples:
  minip2p demo
  minip2p words
  minip2p generate "a cat on the beach" --seed 1
  minip2p generate "a cat on the beach" --seed random --count 4
  minip2p show out/a-cat-on-the-beach-seed1.png
  minip2p edit "a cat on the beach" "a tiger on the beach" "a cat on the beach, watercolor" --seed 1
  minip2p edit "a red car on the street" "a blue car on the street" --cross .6 --cross blue=0 --blend car
  minip2p edit "a house in the fog" "a house in the fog" --reweight fog=2 --reweight house=.5
  minip2p generate "a cat on the beach" --seed 1 --record cat.safetensors
  minip2p edit cat.safetensors "a tiger on the beach"
  minip2p invert photo.jpg "a cat on the beach" -o photo.safetensors
  minip2p edit photo.safetensors "a tiger on the beach"
  minip2p edit photo.jpg --prompt "a cat on the beach" "a tiger on the beach"
  minip2p instruct photo.jpg "make it snow" --model PATH
  minip2p inpaint photo.jpg "a cat on the beach" --mask cat.png --model PATH
  minip2p maps "a cat on the beach" --seed 1 -o maps
  minip2p sweep grid.toml -o sweep
  minip2p bench-edits --count 20 --steps 20
"""


# Keywords of the library that appear in its error messages, and the options that set them.
OPTION_NAMES = (
    ("cross_replace", "--cross"),
    ("self_replace", "--self"),
    ("image_guidance_scale", "--picture-guidance"),
    ("guidance_scale", "--guidance"),
    ("negative_prompt", "--negative"),
    ("vae_refine_steps", "--polish"),
    ("clip_skip", "--clip-skip"),
)

TEXT_OPTIONS = ("--negative", "--prompt")  # whose value may begin with a hyphen

Group: TypeAlias = argparse._ArgumentGroup
Commands: TypeAlias = "argparse._SubParsersAction[Parser]"


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that reports an error in one line."""

    def error(self, message: str) -> NoReturn:
        sys.exit(fail(f"{message}; see {self.prog} --help"))


def parser() -> Parser:
    """The whole command line. The parsed `module` and `command` name the function that does the work."""
    top = Parser(
        "minip2p",
        description="Generate pictures, edit them by editing their prompts, and show where each word looks.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    top.add_argument("--version", action="version", version=f"minip2p {import_module('minip2p').__version__}")
    commands = top.add_subparsers(metavar="COMMAND", dest="command", required=True)
    add_demo(commands)
    add_generate(commands)
    add_edit(commands)
    add_invert(commands)
    add_instruct(commands)
    add_inpaint(commands)
    add_maps(commands)
    add_show(commands)
    add_words(commands)
    add_sweep(commands)
    add_bench_edits(commands)
    return top


def add_command(commands: Commands, name: str, description: str, module: str = "commands") -> Parser:
    """Adds a subcommand. module: the module of `minip2p.cli` with the function that does its work."""
    sub = commands.add_parser(name, help=description, description=description, allow_abbrev=False)
    sub.set_defaults(module=module)
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
    sub.add_argument("targets", metavar="TARGET", nargs="+", help="the prompt of the edited picture")
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
    add_inversion_options(sub.add_argument_group("inversion"))
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
        type=float,
        metavar="W",
        help="image guidance scale: how close to IMAGE; --guidance: how strong the instruction (default: 1.5)",
    )
    add_fit_option(run)
    add_model_options(sub)


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
        help="a CLIP that scores the edits (default: the judge for the model that ships, else no score)",
    )
    add_model_options(sub)


def add_bench_edits(commands: Commands) -> None:
    sub = add_command(
        commands, "bench-edits", "measure edits of photographs, 301 of which ship (needs minip2p[sweep])", "experiments"
    )
    sub.add_argument(
        "--methods",
        default="vae,ddim,direct,direct+mask",
        metavar="A,B",
        help="the methods to compare, or all (default: vae,ddim,direct,direct+mask)",
    )
    sub.add_argument(
        "--cases",
        metavar="FOLDER",
        help="cases in PIE-Bench's layout, run with its settings where there are any (default: those that ship)",
    )
    sub.add_argument("--count", type=int, metavar="N", help="run only the first N cases")
    sub.add_argument("--steps", type=int, help="number of DDIM steps (default: 50)")
    sub.add_argument("--clip", metavar="FOLDER", help="a CLIP that scores the edits as well")
    sub.add_argument("--lpips", metavar="FILE", help="weights of LPIPS with SqueezeNet, which measures them as well")
    sub.add_argument("--dino", metavar="FOLDER", help="a DINO, whose structure distance measures them as well")
    sub.add_argument(
        "-o",
        "--out",
        default="out/bench",
        metavar="FOLDER",
        help="the folder of the results; an interrupted benchmark continues there (default: out/bench)",
    )
    add_model_options(sub)


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
        group.add_argument("--count", type=int, metavar="N", help="run N seeds, counted on from --seed")
    group.add_argument("--steps", type=int, help="number of DDIM steps, 1 to 1000 (default: 50)")
    group.add_argument(
        "--guidance", type=float, metavar="W", help="classifier-free guidance scale (default: the model's)"
    )
    group.add_argument("--size", metavar="HxW", help="rows x columns in pixels (default: the model's)")
    group.add_argument("--negative", metavar="PROMPT", help="negative prompt: what the picture should not show")
    group.add_argument(
        "--clip-skip",
        type=int,
        metavar="N",
        help="read the text encoder N - 1 layers before the model's own (default: 1), counted as in A1111's web UI; in "
        "diffusers the same is clip_skip = N - 1",
    )
    return group


def add_edit_options(sub: Parser) -> None:
    group = sub.add_argument_group("edit")
    group.add_argument(
        "--kind",
        choices=("auto", "swap", "refine"),
        help="swap: words are replaced; refine: words are added or removed (default: auto, from the prompts)",
    )
    group.add_argument(
        "--cross",
        action="append",
        metavar="[WORD=]SHARE",
        help="the share of the steps, from the first, at which the target takes the source's cross-attention "
        "(default: 0.8); START:END for an interval, START:END:OUT to fade out from END to OUT; cat=.4 for one word of "
        "the target. May be repeated",
    )
    group.add_argument("--self", dest="self_", metavar="SHARE", help="the same for self-attention (default: 0.4)")
    group.add_argument(
        "--reweight",
        action="append",
        default=[],
        metavar="WORD=WEIGHT",
        help="strengthen (2) or weaken (.5, 0, -1) a word of the target. May be repeated",
    )
    group.add_argument(
        "--blend",
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
        metavar="IMAGE",
        help="edit the attention only where IMAGE is white; elsewhere it remains the source's in all steps",
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
        choices=("ddim", "direct", "negative-prompt", "proximal", "null-text", "edit-friendly"),
        help="method of inversion (default: direct, which reconstructs the VAE's version of the photograph exactly)",
    )
    add_fit_option(group)
    group.add_argument(
        "--polish",
        type=int,
        metavar="N",
        help="updates that move the latents so that the VAE decodes them closer to the photograph (default: 0; "
        "20 help much)",
    )


def add_fit_option(group: Group) -> None:
    group.add_argument(
        "--fit", choices=("crop", "stretch"), help="how a picture or mask of another shape is fitted (default: crop)"
    )


def add_model_options(sub: Parser) -> None:
    group = sub.add_argument_group("model")
    group.add_argument(
        "--model",
        metavar="PATH",
        help="a folder in diffusers' layout, a .safetensors file, or org/name on the hub (default: the one that ships)",
    )
    group.add_argument(
        "--config",
        metavar="PATH",
        help="for a single file: a folder or org/name with the configurations and tokenizers of its family",
    )
    group.add_argument("--vae", metavar="PATH", help="another VAE: a folder, a file, or org/name")
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

    Exits with 143 after SIGTERM and 129 after SIGHUP.
    """
    escape_unprintable()
    if argv is None:  # a program of its own, whose threads are its own matter
        wait_passively()
    args = parser().parse_args(join_text_values(sys.argv[1:] if argv is None else argv))

    def work() -> None:
        import_module("minip2p.cli.paths").expand_paths(args)
        command = getattr(import_module(f"minip2p.cli.{args.module}"), args.command.replace("-", "_"))
        if argv is None and args.module != "show":
            choose_threads()
        try:
            with exit_on_signals():
                command(args)
        except ValueError as error:
            raise ValueError(name_options(str(error)) if args.module == "commands" else str(error)) from None

    return run_guarded(work)


def name_options(message: str) -> str:
    """An error message of the library with the names of options instead of keywords."""
    for keyword, option in OPTION_NAMES:
        message = re.sub(rf"\b{keyword}\b", option, message)
    return message


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
        print("minip2p: terminated", file=sys.stderr)
        sys.exit(128 + number)

    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    if threading.current_thread() is not threading.main_thread():  # only there a handler can be set
        numbers = []
    before = {number: signal.getsignal(number) for number in numbers}
    for number in numbers:
        if before[number] == signal.SIG_DFL:  # nohup ignores SIGHUP
            signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
