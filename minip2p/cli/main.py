"""The command `minip2p`: its options, and its errors in one line.

Nothing but argparse is imported until the arguments are read, so that --help answers at once.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from minip2p.errors import fail, run_guarded

EPILOG = """where the pictures go:
  -o FOLDER    into the folder, which is made if need be; their names begin with the prompt and the seed
  -o FILE.png  there, and all others beside it; their names begin with FILE
Each PNG carries what it was made with in its text chunk "parameters". Files of the same name are replaced.

examples:
  minip2p generate "a cat on the beach" --seed 1
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


class Parser(argparse.ArgumentParser):
    """argparse, but an error is one line."""

    def error(self, message: str) -> NoReturn:
        sys.exit(fail(f"{message}; see {self.prog} --help"))


def parser() -> Parser:
    """The whole command line. `command` names the function of minip2p.cli.commands that does the work."""
    top = Parser(
        "minip2p",
        description="Generate pictures, edit them by editing their prompts, see where words look.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    commands = top.add_subparsers(metavar="COMMAND", dest="command", required=True)

    def command(name: str, does: str) -> Parser:
        return commands.add_parser(name, help=does, description=does, allow_abbrev=False)

    one = command("generate", "generate a picture from a prompt")
    one.add_argument("prompt", metavar="PROMPT")
    add_run_options(one)
    one.add_argument("--record", metavar="FILE", help="keep the run in this file (.safetensors), to be edited later")
    one = command("edit", "edit a generated picture by editing its prompt")
    add_edited(one)
    one = command("invert", "make a photograph a run, which edit takes as it takes a generated one")
    add_photograph(one)
    add_painters(command)
    one = command("maps", "generate a picture and show where each word of its prompt looks")
    one.add_argument("prompt", metavar="PROMPT")
    add_run_options(one)
    one = command("sweep", "make every edit of a grid, with a table, contact sheets and charts (needs minip2p[sweep])")
    one.add_argument("grid", metavar="GRID", help="a TOML file: the source, what is compared, and settings of the run")
    one.add_argument("-o", "--out", default="out", metavar="FOLDER", help="where the results go (default: out)")
    one.add_argument(
        "--clip",
        metavar="FOLDER",
        help="a CLIP, by which the edits' success is measured (default: the "
        "judge, for the model that ships; else none)",
    )
    add_model_options(one)
    one = command("bench-edits", "measure edits of photographs, on 301 pictures that ship (needs minip2p[sweep])")
    add_bench_options(one)
    return top


def add_edited(one: Parser) -> None:
    one.add_argument(
        "source",
        metavar="SOURCE",
        help="the prompt of the picture to edit; the file (.safetensors) of a run; or, with --prompt, a photograph",
    )
    one.add_argument("targets", metavar="TARGET", nargs="+", help="what it should become")
    add_run_options(one)
    add_edit_options(one)
    one.add_argument("--prompt", metavar="PROMPT", help="SOURCE is a photograph, and this is what it shows")
    one.add_argument("--paste", action="store_true", help="outside of --blend or --mask, the photograph's own pixels")
    add_invert_options(one)


def add_painters(command: Callable[[str, str], Parser]) -> None:
    one = command("instruct", "make a picture of a picture as it is told to, by models such as InstructPix2Pix")
    add_painted(one, "INSTRUCTION", 'what is to be done, "make it snow"')
    one.add_argument(
        "--picture-guidance",
        type=float,
        default=1.5,
        metavar="W",
        help="how near to the picture; --guidance: how strong the instruction (default: 1.5)",
    )
    one = command("inpaint", "make a picture anew where a mask is white, by models that were trained for it")
    add_painted(one, "PROMPT", "what it shall show")
    one.add_argument("--mask", required=True, metavar="IMAGE", help="white where there is to be something new")


def add_bench_options(one: Parser) -> None:
    add = one.add_argument
    add(
        "--methods",
        default="vae,ddim,direct,direct+mask",
        metavar="A,B",
        help="what is compared, or all (default: vae,ddim,direct,direct+mask)",
    )
    add("--cases", metavar="FOLDER", help="of PIE-Bench's layout (default: the pictures that ship)")
    add("--count", type=int, metavar="N", help="the first N cases alone")
    add("--steps", type=int, default=50, help="of DDIM (default: 50)")
    add("--clip", metavar="FOLDER", help="a CLIP, by which success is measured as well")
    add(
        "-o",
        "--out",
        default="out/bench",
        metavar="FOLDER",
        help="where results go, and are gone on with (default: out/bench)",
    )
    add_model_options(one)


def add_painted(one: Parser, name: str, says: str) -> None:
    one.add_argument("picture", metavar="IMAGE")
    one.add_argument("prompt", metavar=name, help=says)
    one.add_argument("--fit", choices=("crop", "stretch"), help="how the picture gets its size (default: crop)")
    one.add_argument("--record", metavar="FILE", help="keep the run in this file (.safetensors), to be edited later")
    add_run_options(one)


def add_photograph(one: Parser) -> None:
    add = one.add_argument
    add("picture", metavar="IMAGE")
    add("prompt", metavar="PROMPT", help="what it shows")
    add(
        "-o",
        "--out",
        default="out/run.safetensors",
        metavar="FILE",
        help="the run's file (.safetensors); what it shows goes beside it as a PNG (default: out/run.safetensors)",
    )
    add_way_options(one)
    add_invert_options(one)


def add_model_options(one: Parser) -> None:
    add = one.add_argument
    add(
        "--model",
        metavar="PATH",
        help="a folder in diffusers' layout, a .safetensors file, or org/name on the hub (default: the one that ships)",
    )
    add("--config", metavar="PATH", help="for a single file: a folder of its family, or org/name, for its small files")
    add("--vae", metavar="PATH", help="another VAE: a folder, a file, or org/name")
    add("--lora", action="append", default=[], metavar="FILE[:SCALE]", help="merge a LoRA; several times for several")
    add("--dtype", choices=("float32", "float16", "bfloat16"), default="float32", help="(default: float32)")
    add("--device", default="cpu", help="cpu, cuda, cuda:1, mps (default: cpu)")


def add_run_options(one: Parser) -> None:
    add = one.add_argument
    add("-o", "--out", default="out", metavar="OUT", help="a folder, or a file that ends in .png (default: out)")
    add("--seed", type=int, help="of the noise (default: 0)")
    add_way_options(one)


def add_way_options(one: Parser) -> None:
    add = one.add_argument
    add("--steps", type=int, help="of DDIM, 1 to 1000 (default: 50)")
    add("--guidance", type=float, metavar="W", help="of the classifier-free guidance (default: the model's own)")
    add("--size", metavar="HxW", help="rows x columns in pixels (default: the model's own)")
    add("--negative", metavar="PROMPT", help="what the picture should not show")
    add_model_options(one)


def add_invert_options(one: Parser) -> None:
    add = one.add_argument
    add(
        "--method",
        choices=("ddim", "direct", "negative-prompt", "proximal", "null-text", "edit-friendly"),
        help="of the inversion (default: direct, which meets the picture as the VAE has it)",
    )
    add(
        "--fit",
        choices=("crop", "stretch"),
        help="how a photograph of another shape, and a mask, is brought to the size (default: crop)",
    )
    add(
        "--polish",
        type=int,
        metavar="N",
        help="so many updates bring what the VAE makes of the photograph nearer to it (default: 0; 20 do much)",
    )


def add_edit_options(one: Parser) -> None:
    add = one.add_argument
    add(
        "--kind",
        choices=("auto", "swap", "refine"),
        default="auto",
        help="words are exchanged (swap), or added or left out (refine) (default: auto, by the prompts)",
    )
    add(
        "--cross",
        action="append",
        default=[".8"],
        metavar="[WORD=]SHARE",
        help="for what share of the run, from its start, the target takes the source's cross-attention (default: .8); "
        "START:END for a part, START:END:OUT if it is to fade until OUT; cat=.4 for one word of the target. May be "
        "repeated",
    )
    add("--self", dest="self_", default=".4", metavar="SHARE", help="the same for the self-attention (default: .4)")
    add(
        "--reweight",
        action="append",
        default=[],
        metavar="WORD=WEIGHT",
        help="more (2) or less (.5, 0, -1) of a word of the target. May be repeated",
    )
    add(
        "--blend",
        metavar="WORD[:WORD]",
        help="nothing may change but where this word is; source:target if it is another word there",
    )
    add(
        "--threshold",
        metavar="T",
        help="of --blend: a share of the map's maximum (default: .3), otsu, 85%% (above so "
        "many percent of the pixels), or LOW:HIGH, softly",
    )
    add("--mask", metavar="IMAGE", help="instead of --blend: nothing may change but where this picture is white")
    add(
        "--within",
        metavar="IMAGE",
        help="the edit reaches the attention where this picture is white; elsewhere it stays the source's to the end",
    )
    add("--explicit", action="store_true", help="form the attention maps, as the paper does; the result is the same")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command. Returns 0; 2 for an error, after one line on stderr; 130 after Ctrl-C."""
    args = parser().parse_args(argv)

    def work() -> None:
        from minip2p.cli import commands

        getattr(commands, args.command.replace("-", "_"))(args)

    return run_guarded(work)
