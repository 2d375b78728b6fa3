"""The parser, the dispatch and the exit status of `minip2p`."""

import inspect
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from command_line import CAT, TIGER, error_line, run, run_python
from paths import ROOT

import minip2p
from minip2p import LocalBlend
from minip2p.cli import main
from minip2p.inversion.methods import METHODS
from minip2p.p2p.options import EditOptions
from minip2p.pipeline import Pipeline
from minip2p.sampling.settings import RunSettings

COMMANDS = ["demo", "generate", "edit", "invert", "instruct", "inpaint", "maps"]
COMMANDS += ["show", "words", "sweep", "bench-edits"]


def subparsers():
    """Name -> parser of every subcommand."""
    (action,) = (action for action in main.parser()._actions if action.dest == "command")
    return action.choices


def test_these_are_the_commands():
    assert list(subparsers()) == COMMANDS


# --- defaults


def keyword_default(function, name):
    return inspect.signature(function).parameters[name].default


DEFAULTS = {  # option -> the library's default; None: the model's
    "--seed": RunSettings.seed,
    "--steps": RunSettings.steps,
    "--guidance": RunSettings.guidance_scale,
    "--size": RunSettings.size,
    "--clip-skip": RunSettings.clip_skip,
    "--kind": EditOptions.kind,
    "--cross": EditOptions.cross_replace,
    "--self": EditOptions.self_replace,
    "--threshold": LocalBlend.threshold,
    "--method": keyword_default(Pipeline.invert, "method"),
    "--fit": keyword_default(Pipeline.invert, "fit"),
    "--polish": keyword_default(Pipeline.invert, "vae_refine_steps"),
    "--picture-guidance": keyword_default(Pipeline.instruct, "image_guidance_scale"),
}
WITHOUT_DEFAULT = {
    "--blend",
    "--config",
    "--lora",
    "--embedding",
    "--mask",
    "--negative",
    "--prompt",
    "--record",
    "--reweight",
    "--vae",
}
WITHOUT_DEFAULT |= {"--cases", "--count", "--within"}


@pytest.mark.parametrize("command", COMMANDS)
def test_help_names_the_librarys_defaults_and_the_parser_has_none_of_its_own(command):
    """What an option's help calls the default is the library's, for every option of a run, an edit or an inversion."""
    for action in subparsers()[command]._actions:
        if not action.option_strings or action.nargs == 0:
            continue
        option = action.option_strings[-1]
        default = re.search(r"\(default: ([^),;]+)", action.help)
        if option in DEFAULTS:
            value = DEFAULTS[option]
            assert default, option
            assert default[1] == ("the model's" if value is None else str(value)), option
            assert action.default is None, option
        elif default is None:
            networks = ("--clip", "--lpips", "--dino")
            assert option in WITHOUT_DEFAULT or (command == "bench-edits" and option in networks), option


def test_every_inversion_can_be_chosen():
    for command in ("edit", "invert"):
        (action,) = (action for action in subparsers()[command]._actions if "--method" in action.option_strings)
        assert tuple(action.choices) == tuple(METHODS)


def test_defaults_that_the_commands_repeat_are_the_librarys():
    assert DEFAULTS["--method"] == inspect.signature(Pipeline.invert).parameters["method"].default
    assert DEFAULTS["--fit"] == keyword_default(Pipeline.instruct, "fit") == keyword_default(Pipeline.inpaint, "fit")
    assert not RunSettings.negative_prompt and not EditOptions.reweight and not EditOptions.explicit


# --- imports


def test_help_does_not_import_torch_and_takes_less_than_a_second():
    code = (
        "import sys; from minip2p.cli import main\n"
        "for arguments in (['--help'], ['edit', '--help']):\n"
        "    try: main.main(arguments)\n"
        "    except SystemExit as end: print(end.code)\n"
        "print(sorted({'torch', 'numpy', 'PIL', 'transformers', 'tqdm'} & set(sys.modules)))"
    )
    times = []
    for _ in range(3):
        start = time.perf_counter()
        output = run_python(code)
        times.append(time.perf_counter() - start)
        assert output.count("usage: minip2p") == 2 and output.endswith("0\n[]\n")
        if times[-1] < 1:
            break
    assert min(times) < 1


def test_generate_imports_neither_the_experiments_nor_what_only_they_need(tmp_path):
    heavy = ["minip2p.evaluation", "minip2p.tiny", "minip2p.sweeps", "minip2p.cli.experiments", "minip2p.baselines"]
    heavy += ["matplotlib", "pyarrow", "skimage", "concurrent.futures.process"]
    code = (
        "import sys, torch; before = set(sys.modules)\n"
        "from minip2p.cli import main\n"
        f"status = main.main(['generate', {CAT!r}, '--steps', '1', '-o', {str(tmp_path / 'cat.png')!r}])\n"
        f"print(status, sorted(set({heavy}) & (set(sys.modules) - before)))"
    )
    assert run_python(code) == f"{tmp_path / 'cat.png'}\n0 []\n"


def test_show_words_and_version_do_not_load_torch(tmp_path):
    code = (
        "import sys; from minip2p.cli import main\n"
        "main.main(['words'])\n"
        "main.main(['show', 'tests/data/renders/00.png'])\n"
        "try: main.main(['--version'])\n"
        "except SystemExit as end: print(end.code, 'torch' in sys.modules)"
    )
    assert run_python(code).endswith(f"minip2p {minip2p.__version__}\n0 False\n")


# --- exit status


def test_ctrl_c_is_one_line_and_status_130(tmp_path, capsys, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("minip2p.pipeline.Pipeline.generate", interrupt)
    assert run("generate", CAT, "-o", tmp_path / "out") == 130
    assert capsys.readouterr().err == "minip2p: interrupted\n"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried …")]
)
def test_too_little_memory_is_one_line(error, capsys, monkeypatch):
    monkeypatch.setattr(commands, "generate", lambda _: (_ for _ in ()).throw(error))
    assert "not enough memory" in error_line(capsys, "generate", CAT)


def test_a_bug_is_a_traceback(monkeypatch):
    monkeypatch.setattr(commands, "generate", lambda _: (_ for _ in ()).throw(RuntimeError("shapes differ")))
    with pytest.raises(RuntimeError, match="shapes differ"):
        run("generate", CAT)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((), "the following arguments are required: COMMAND"),
        (("frobnicate", CAT), "invalid choice: 'frobnicate'"),
        (("generate", CAT, "--frob"), "unrecognized arguments: --frob"),
        (("generate", CAT, "--neg", "fog"), "unrecognized arguments: --neg fog"),
        (("generate", CAT, "--steps", "many"), "argument --steps: invalid int value: 'many'"),
        (("generate", CAT, "--size", "-128x128"), "argument --size"),
        (("edit", CAT), "the following arguments are required: TARGET"),
        (("edit", CAT, TIGER, "--kind", "guess"), "invalid choice: 'guess'"),
        (("edit", CAT, TIGER, "--prompt", CAT, "--method", "magic"), "invalid choice: 'magic'"),
        (("inpaint", "a.png", CAT), "the following arguments are required: --mask"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_line(arguments, message, capsys):
    line = error_line(capsys, *arguments)
    assert message in line and line.endswith("--help")


def test_errors_of_the_library_name_the_options(capsys, monkeypatch):
    def fail(_):
        raise ValueError("guidance_scale and image_guidance_scale must be finite, cross_replace: 'cat'")

    monkeypatch.setattr(commands, "generate", fail)
    expected = "--guidance and --picture-guidance must be finite, --cross: 'cat'"
    assert error_line(capsys, "generate", CAT) == expected


@pytest.mark.parametrize("command", [["generate", CAT], ["edit", CAT, TIGER], ["maps", CAT]])
def test_a_negative_prompt_may_begin_with_a_hyphen(command, monkeypatch):
    args = []
    monkeypatch.setattr(commands, command[0], args.append)
    assert run(*command, "--negative", "-blurry", "--steps", 3) == 0
    assert (args[0].negative, args[0].steps) == ("-blurry", 3)


def test_an_option_is_never_taken_for_a_negative_prompt(capsys):
    for option in ("-o", "--steps"):
        assert "--negative: expected one argument" in error_line(capsys, "generate", CAT, "--negative", option, 3)


# --- processes


@pytest.mark.skipif(not hasattr(signal, "SIGTERM") or os.name == "nt", reason="Windows ends processes at once")
def test_sigterm_leaves_no_partial_file(tmp_path):
    """Also while a record is written, whose file is filled step by step."""
    code = (
        "import os, signal, sys, torch; from minip2p.cli import main; from minip2p.unet import UNet\n"
        "forward = UNet.__call__\n"
        "def stop(*a, **k): print(os.listdir('.')); os.kill(os.getpid(), signal.SIGTERM); return forward(*a, **k)\n"
        "UNet.__call__ = stop\n"
        "main.main(['generate', 'a cat', '--steps', '2', '--record', 'run.safetensors', '-o', 'a.png'])"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 128 + signal.SIGTERM and done.stderr == "minip2p: terminated\n"
    assert ".partial" in done.stdout and not list(tmp_path.iterdir())


def test_python_m_minip2p_is_the_command():
    done = subprocess.run([sys.executable, "-m", "minip2p", "edit"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == "" and done.stderr.count("\n") == 1


def test_a_closed_output_is_no_error_and_the_picture_is_written(tmp_path):
    """The reader of the output has gone before the first line is written."""
    command = [sys.executable, "-u", "-m", "minip2p", "generate", "a cat", "--steps", "1", "-o", str(tmp_path)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}  # so nothing is said of a busy machine
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment)
    process.stdout.close()
    errors = process.stderr.read()
    assert process.wait() == 0 and errors == b"" and len(list(tmp_path.glob("*.png"))) == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no device that is always full")
def test_output_that_cannot_be_written_is_one_line():
    code = "import sys; from minip2p.errors import run_guarded; sys.exit(run_guarded(lambda: print(1)))"
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-c", code]
        done = subprocess.run(command, cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "No space left" in done.stderr
