"""The parser, the dispatch and the exit status of `minip2p`."""

import inspect
import os
import re
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest
from command_line import CAT, TIGER, error_line, run, run_python
from paths import ROOT

import minip2p
from minip2p import LocalBlend
from minip2p.cli import commands, main
from minip2p.errors import Notice
from minip2p.evaluation import move_benchmark
from minip2p.inversion.methods import METHODS
from minip2p.p2p.options import EditOptions
from minip2p.pairs.settings import PairSettings
from minip2p.pipeline import Pipeline
from minip2p.sampling.settings import RunSettings
from minip2p.sched import DDIMScheduler

COMMANDS = ["demo", "generate", "edit", "plan", "invert", "instruct", "inpaint", "maps"]
COMMANDS += ["show", "words", "app", "sweep", "pairs", "bench-edits", "bench-moves"]


def subparsers():
    """Name -> parser of every subcommand."""
    return main.subparsers(main.parser())


def test_these_are_the_commands():
    assert list(subparsers()) == COMMANDS


# --- defaults


def keyword_default(function, name):
    return inspect.signature(function).parameters[name].default


DEFAULTS = {  # option -> the library's default; None: the model's
    "--seed": RunSettings.seed,
    "--steps": DDIMScheduler.default_steps,
    "--guidance": RunSettings.guidance_scale,
    "--size": RunSettings.size,
    "--clip-skip": RunSettings.clip_skip,
    "--uncond-every": RunSettings.uncond_every,
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
    "--guidance-interval",
    "--mask",
    "--negative",
    "--prompt",
    "--record",
    "--reweight",
    "--skip",
    "--vae",
}
WITHOUT_DEFAULT |= {"--cases", "--count", "--export", "--within", "--move", "--resize", "--duplicate", "--remove"}
WITHOUT_DEFAULT |= {"--shard", "--join", "--tell", "--caption", "--ray"}


@pytest.mark.parametrize("command", COMMANDS)
def test_help_names_the_librarys_defaults_and_the_parser_has_none_of_its_own(command):
    """What an option's help calls the default is the library's, for every option of a run, an edit or an inversion."""
    for action in subparsers()[command]._actions:
        if not action.option_strings or action.nargs == 0:
            continue
        option = action.option_strings[-1]
        default = re.search(r"\(default: ([^),;]+)", action.help)
        if option in DEFAULTS:
            value = move_benchmark.STEPS if (command, option) == ("bench-moves", "--steps") else DEFAULTS[option]
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
        (("frobnicate", CAT), "COMMAND: there is no 'frobnicate': there are demo, generate, edit,"),
        (("generate", CAT, "--frob"), "minip2p generate has no option --frob; see"),
        (("generate", CAT, "--neg", "fog"), "has no option --neg: did you mean --negative?"),
        (("generate", CAT, "--sed", 3), "has no option --sed: did you mean --seed? See minip2p generate --help"),
        (("generate", "--sed", 3), "has no option --sed: did you mean --seed?"),
        (("generate", CAT, "--num_inference_steps=3"), "has no option --num_inference_steps: did you mean --steps?"),
        (
            ("generate", CAT, "--cfg-scale", 3),
            "has no option --cfg-scale: did you mean --guidance or --guidance-interval?",
        ),
        (("generate", CAT, "--STEPS", 3), "has no option --STEPS: did you mean --steps?"),
        (("generate", CAT, "--blend", "cat"), "has no option --blend, which edit has"),
        (("generate", CAT, "--prompt", CAT), "has no option --prompt, which edit, maps have"),
        (("generate", CAT, "-seed", 3), "has no option -seed: did you mean --seed?"),
        (("generate", CAT, "-outdir"), "has no option -outdir: did you mean --out?"),
        (("generate", "-blurry"), "has no option -blurry: write -- before arguments that begin with a hyphen"),
        (("edit", "-x.png", TIGER), "has no option -x.png: write -- before arguments that begin with a hyphen, or ./"),
        (("--seed", 3, "generate", CAT), "has no option --seed: options follow the name of the command"),
        (("generat", CAT), "COMMAND: there is no 'generat': did you mean generate?"),
        (("generate", "a", "cat", "on", "grass"), "too many arguments, from 'cat' on; a prompt of several words needs"),
        (("generate", CAT, "--seed", 1, 2), "too many arguments, from '2' on; see"),
        (("words", "x"), "too many arguments, from 'x' on; see minip2p words --help"),
        (("inpaint", "a.png", CAT, "--maks", "b.png"), "has no option --maks: did you mean --mask?"),
        (("generate", CAT, "--steps", "many"), "--steps: must be a whole number, not 'many'"),
        (("generate", CAT, "--guidance", "abc"), "--guidance: must be a number, not 'abc'"),
        (("generate", CAT, "--size", "-128x128"), "--size: expected one argument"),
        (("edit", CAT), "the following arguments are required: TARGET"),
        (("edit", CAT, TIGER, "--kind", "guess"), "--kind: there is no 'guess': there are auto, swap, refine"),
        (("edit", CAT, TIGER, "--kind", "swop"), "--kind: there is no 'swop': did you mean swap?"),
        (("edit", CAT, TIGER, "--prompt", CAT, "--method", "magic"), "--method: there is no 'magic'"),
        (("inpaint", "a.png", CAT), "the following arguments are required: --mask"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_line(arguments, message, capsys):
    line = error_line(capsys, *arguments)
    assert message in line and line.endswith("--help")


def test_options_are_named_after_the_keywords_that_they_set():
    """So an error of the library names the option. What no keyword has is of the command line alone."""
    keywords = {
        name
        for function in (Pipeline.edit, Pipeline.instruct, Pipeline.invert, minip2p.load, minip2p.plan)
        for name in inspect.signature(function).parameters
    }
    keywords |= {name for method in METHODS.values() for name in inspect.signature(method).parameters}
    keywords |= set(RunSettings.__dataclass_fields__) | set(PairSettings.__dataclass_fields__)
    not_keywords = {
        "help",
        "out",
        "overwrite",
        "record",
        "count",
        "paste",
        "no_compare",
        "threshold",
        "mask",
        "lora",
        "embedding",
        "fast",
        "tell",
    }
    not_keywords |= {"host", "port", "token", "no_browser", "export", "lpips", "dino"}
    not_keywords |= {"model", "methods", "cases", "clip", "grid", "file", "targets", "shard", "join", "ray"}
    not_keywords |= {"preset", "prompts", "formats"}
    for command, sub in subparsers().items():
        assert set(sub.flags) - keywords <= not_keywords, command
    assert subparsers()["edit"].flags["guidance_scale"] == "--guidance"


def test_warnings_come_before_the_work_and_after_all_errors(capsys, monkeypatch):
    """A command is a generator: the notices of its checks are shown when it yields, and not if it fails."""

    def command(args):
        warnings.warn("a notice", Notice, stacklevel=1)
        if args.prompt == "wrong":
            raise ValueError("seed must be right")
        yield
        print(capsys.readouterr().err)

    monkeypatch.setattr(commands, "generate", command)
    assert error_line(capsys, "generate", "wrong") == "--seed must be right"
    assert run("generate", CAT) == 0
    assert capsys.readouterr().out == "minip2p: warning: a notice\n\n"


def test_the_machine_is_measured_after_the_checks(monkeypatch, capsys):
    """Where `minip2p` runs as a program of its own; before, the line about a busy machine preceded the error."""
    order = []
    monkeypatch.setattr(main, "choose_threads", lambda: order.append("threads"))
    monkeypatch.setattr(main, "wait_passively", lambda: None)
    monkeypatch.setattr(commands, "generate", lambda args: iter([order.append("checks"), order.append("work")]))
    monkeypatch.setattr(sys, "argv", ["minip2p", "generate", CAT])
    assert main.main() == 0 and order[-1] == "threads"
    monkeypatch.setattr(sys, "argv", ["minip2p", "edit", CAT, TIGER, "--cross", "2"])
    del order[:]
    assert main.main() == 2 and order == []


@pytest.mark.parametrize("command", [["generate", CAT], ["edit", CAT, TIGER], ["maps", CAT]])
def test_a_negative_prompt_may_begin_with_a_hyphen(command, monkeypatch):
    args = []
    monkeypatch.setattr(commands, command[0], lambda parsed: iter([args.append(parsed)]))
    assert run(*command, "--negative", "-blurry", "--steps", 3) == 0
    assert (args[0].negative_prompt, args[0].steps) == ("-blurry", 3)


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


def test_only_the_signal_handlers_that_were_set_are_set_back(monkeypatch):
    """Of a handler that was not set from Python, getsignal returns None, which signal does not take."""
    before, called = {signal.SIGTERM: signal.SIG_DFL, signal.SIGHUP: None}, []
    monkeypatch.setattr(signal, "getsignal", before.get)
    monkeypatch.setattr(signal, "signal", lambda number, handler: called.append((number, handler)))
    with main.exit_on_signals():
        ((number, handler),) = called
    assert number == signal.SIGTERM and called[1:] == [(signal.SIGTERM, signal.SIG_DFL)]
    monkeypatch.setattr(os, "write", lambda file, text: called.append((file, text)))
    with pytest.raises(SystemExit) as end:
        handler(number, None)
    assert end.value.code == 143 and called[-1] == (2, b"minip2p: terminated\n")


def test_python_m_minip2p_is_the_command():
    done = subprocess.run([sys.executable, "-m", "minip2p", "edit"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == "" and done.stderr.count("\n") == 1


def test_a_closed_output_is_no_error_and_all_pictures_are_written(tmp_path):
    """The reader of the output has gone before the first line is written."""
    options = ["--steps", "1", "--count", "3", "-o", str(tmp_path)]
    command = [sys.executable, "-u", "-m", "minip2p", "generate", "a cat", *options]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}  # so nothing is said of a busy machine
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment)
    process.stdout.close()
    errors = process.stderr.read()
    assert process.wait() == 0 and errors == b"" and len(list(tmp_path.glob("*.png"))) == 3


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no device that is always full")
def test_output_that_cannot_be_written_is_one_line():
    code = "import sys; from minip2p.errors import run_guarded; sys.exit(run_guarded(lambda: print(1)))"
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-c", code]
        done = subprocess.run(command, cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "No space left" in done.stderr
