"""The programs in README.md, the documentation and the examples: every Python block runs, every command line parses.

The blocks of a page run in order in one namespace, in a temporary folder with the files that the pages name, at few
steps, with the model that ships. Where a page loads another model, it gets the small one in its place.
"""

import io
import os
import re
import shlex
import shutil
from contextlib import redirect_stdout
from dataclasses import replace

import pytest
import torch
from paths import ROOT
from PIL import Image
from safetensors.torch import save_file

import minip2p
from minip2p.cli import demo, options
from minip2p.cli.main import EPILOG, main, parser
from minip2p.inversion import encode
from minip2p.inversion.encode import refine_latents
from minip2p.sampling.settings import RunSettings
from minip2p.unet import UNet

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "examples").glob("*.md"))]
COMMAND_PAGE = ROOT / "docs" / "command-line.md"
PROGRAMS = sorted((ROOT / "examples").glob("*.py"))
FENCE = re.compile(r"^```(?P<kind>[^\n`]*)\n(?P<body>.*?)^```$", re.DOTALL | re.MULTILINE)
STEPS = 2
EXTRA_CHANNELS = {"instruct": 4, "inpaint": 5}  # what the UNets of such models read besides the latents


def page_id(path):
    return path.relative_to(ROOT).as_posix()


def blocks(page, *kinds):
    """The fenced blocks of these kinds, in order."""
    return blocks_of(page.read_text(encoding="utf-8"), *kinds)


def blocks_of(text, *kinds):
    return [match["body"] for match in FENCE.finditer(text) if match["kind"].strip() in kinds]


def command_lines(page):
    """The commands of minip2p in the shell blocks and the unmarked blocks of a page, without what starts them."""
    return command_lines_of(page.read_text(encoding="utf-8"))


def command_lines_of(text):
    lines = []
    for body in blocks_of(text, "", "bash", "console", "sh", "shell"):
        for line in body.replace("\\\n", " ").splitlines():
            if match := re.match(r"\s*(?:\$ )?(?:uvx (?:\S+ )*?|python3? -m )?minip2p (.*)", line):
                lines.append(match[1])
    return lines


def with_extra_channels(pipe, count):
    """The small model as one that reads more channels besides the latents, which it ignores."""
    config = replace(pipe.unet.config, in_channels=pipe.unet.config.in_channels + count)
    weights = pipe.unet.state_dict()
    first = weights["conv_in.weight"]
    weights["conv_in.weight"] = torch.cat([first, torch.zeros(len(first), count, *first.shape[2:])], dim=1)
    unet = UNet(config)
    unet.load_state_dict(weights)
    return replace(pipe, components=replace(pipe.components, unet=unet.eval().requires_grad_(False)))


def write_lora(pipe, file):
    """A LoRA of rank 1 for one layer."""
    name, layer = next((n, m) for n, m in pipe.unet.named_modules() if n.endswith("to_q"))
    rows, columns = layer.weight.shape
    save_file(
        {f"unet.{name}.lora_A.weight": torch.ones(1, columns), f"unet.{name}.lora_B.weight": torch.ones(rows, 1)}, file
    )


@pytest.fixture
def pipe(request, cpu_model, small_cpu_model):
    """The small model, with small pictures; where objects are moved, with true ones: they must stay in the picture."""
    (program,) = request.node.callspec.params.values()
    text = program if isinstance(program, str) else program.read_text(encoding="utf-8")
    return cpu_model if re.search(r"--move\b|\bmove=", text) else small_cpu_model


@pytest.fixture
def desk(pipe, tmp_path, monkeypatch):
    """A folder with the files that pages name; runs have few steps; `minip2p.load` gives the small model."""
    for folder in ("tests", "weights"):
        os.symlink(ROOT / folder, tmp_path / folder)
    photo = ROOT / "tests/data/renders/00.png"
    for name in ("photo.png", "photo.jpg"):
        Image.open(photo).convert("RGB").save(tmp_path / name)
    Image.new("L", (128, 128), 255).save(tmp_path / "mask.png")
    for name in ("style", "lcm-lora"):
        write_lora(pipe, tmp_path / f"{name}.safetensors")
    save_file({"<my-toy>": torch.ones(1, pipe.text.clip_encoders[0].width)}, tmp_path / "my-toy.safetensors")

    check = RunSettings.__post_init__

    def few_steps(settings):
        check(settings)
        object.__setattr__(settings, "steps", min(settings.steps or STEPS, STEPS))

    def load(where=None, **options):
        extra = next((count for word, count in EXTRA_CHANNELS.items() if word in str(where)), 0)
        return with_extra_channels(pipe, extra) if extra else pipe

    def few_updates(components, latents, pictures, updates):
        return refine_latents(components, latents, pictures, min(updates, 1))

    monkeypatch.setattr(RunSettings, "__post_init__", few_steps)
    monkeypatch.setattr(encode, "refine_latents", few_updates)
    monkeypatch.setattr(minip2p, "load", load, raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run_block(text, name, namespace):
    with redirect_stdout(io.StringIO()):
        exec(compile(text, name, "exec"), namespace)


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=page_id)
def test_python_blocks_of_a_page_run(page, desk):
    namespace = {"__name__": "__main__"}
    for n, body in enumerate(blocks(page, "python"), 1):
        run_block(body, f"{page_id(page)}, block {n}", namespace)


@pytest.mark.parametrize("program", PROGRAMS, ids=page_id)
def test_examples_run(program, desk, monkeypatch):
    monkeypatch.setattr("sys.argv", [str(program)])
    shutil.copy(program, desk)
    run_block(program.read_text(encoding="utf-8"), page_id(program), {"__name__": "__main__"})


@pytest.mark.parametrize(
    ("page", "line"),
    [(page, line) for page in PAGES for line in command_lines(page)],
    ids=lambda value: str(value)[-60:],
)
def test_command_lines_of_a_page_parse(page, line):
    parser().parse_args(shlex.split(line, comments=True))


@pytest.mark.parametrize(
    "program",
    [
        "\n".join(command_lines(COMMAND_PAGE)),
        "\n".join(command_lines_of(f"```bash\n{EPILOG.partition('order:')[2].partition('with files')[0]}```")),
    ],
    ids=["docs/command-line.md", "minip2p --help"],
)
def test_the_examples_of_the_command_line_run_as_they_are(program, desk, pipe, monkeypatch, capsys):
    """In order, in a folder that has only what the repository has. The benchmarks and the app are tested elsewhere."""
    for file in ("photo.png", "photo.jpg", "mask.png"):
        os.remove(desk / file)
    os.symlink(ROOT / "examples", desk / "examples")
    monkeypatch.setattr(options, "load", lambda *args, **settings: pipe)
    monkeypatch.setattr(demo, "load", lambda: pipe)
    lines = program.splitlines()
    assert len(lines) > 12
    for line in lines:
        if not line.startswith(("bench-", "app")):
            assert main(shlex.split(line)) == 0, (line, capsys.readouterr().err)


def test_pages_have_programs():
    """The patterns of this file still find what they are for."""
    assert sum(len(blocks(page, "python")) for page in PAGES) > 40
    assert sum(len(command_lines(page)) for page in PAGES) > 25
