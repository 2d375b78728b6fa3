"""The house rules: arrows between modules run one way, attention is passed and not patched, the core stays small."""

import ast
import re
import shlex
import sys
import tomllib
from configparser import ConfigParser
from itertools import pairwise
from pathlib import Path

import pytest

from minip2p.cli.main import parser
from minip2p.sweeps.grid import Grid

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "minip2p"
FILES = sorted(PACKAGE.rglob("*.py"))
README = (ROOT / "README.md").read_text(encoding="utf-8")

# A module imports from the floors below its own, and from its own package. The lowest comes first.
FLOORS = (
    ("attention", "config", "layers", "errors", "files", "metrics", "picture"),
    ("unet", "vae", "sched"),
    ("checkpoint", "words"),
    ("encoder", "align", "folder", "names"),
    ("text", "edit", "mask", "single", "hub"),
    ("parts",),
    ("rule", "saving", "lora"),
    ("inject", "record", "start", "blend"),
    ("trajectory", "beside"),
    ("replay", "archive", "null_text", "separate", "neighbours"),
    ("invert",),
    ("model",),
    ("loading",),
    ("viz", "png", "grid", "clip", "piebench", "options"),
    ("sweep", "tiny"),
    ("charts", "bench"),
    ("bench_table",),
    ("measure",),
    ("commands",),
    ("cli", "demo"),
    ("__main__",),
)
AROUND = (
    "loading",
    "encoder",
    "folder",
    "single",
    "names",
    "hub",
    "lora",
    "saving",
    "tiny",
    "viz",
    "png",
    "errors",
    "files",
    "metrics",
    "picture",
    "options",
    "grid",
    "clip",
    "sweep",
    "charts",
    "bench",
    "bench_table",
    "piebench",
    "separate",
    "neighbours",
    "measure",
    "commands",
    "cli",
    "demo",
    "__main__",
)
# all else is the core
THIRD_PARTY = {"torch", "numpy", "einops", "PIL", "safetensors", "transformers", "tqdm"}
EXTRAS = {"huggingface_hub", "matplotlib", "pyarrow", "skimage"}  # of what is around the core
CONTAINERS = (ast.List, ast.Dict, ast.Set, ast.ListComp, ast.DictComp, ast.SetComp)
MUTABLE_CALLS = {"list", "dict", "set", "bytearray", "defaultdict", "deque", "Counter", "OrderedDict", "count", "cycle"}


def named(path):
    return str(path.relative_to(ROOT))


def part(path):
    """The module or subpackage of minip2p that a file belongs to: a name in FLOORS."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(tree):
    """All modules that are imported anywhere in a file, with the names taken from them where there are some."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield from ((node.module, alias.name) for alias in node.names)


def own_parts(tree):
    """The parts of minip2p that a file imports."""
    for module, name in imports(tree):
        top, *rest = module.split(".")
        if top == "minip2p":
            yield rest[0] if rest else name


def state(tree):
    """The lines of a module that make state that outlives a call."""
    for node in tree.body:
        if isinstance(node, ast.Assign | ast.AnnAssign | ast.AugAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            call = getattr(node.value, "func", None)
            name = getattr(call, "id", getattr(call, "attr", None))
            dunder = all(isinstance(t, ast.Name) and re.fullmatch("__.*__", t.id) for t in targets)
            if not dunder and (isinstance(node.value, CONTAINERS) or name in MUTABLE_CALLS):
                yield node.lineno
    for node in ast.walk(tree):
        if isinstance(node, ast.Global):
            yield node.lineno
        if isinstance(node, ast.FunctionDef):  # a cache is state too
            decorators = [ast.unparse(one) for one in node.decorator_list]
            yield from (node.lineno for one in decorators if re.match(r"(functools\.)?(lru_)?cache\b", one))


def patches(tree):
    """The lines that reach into a module instead of passing it an argument."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            if re.fullmatch("register_.*hook", node.attr) or (
                node.attr in ("forward", "__call__") and isinstance(node.ctx, ast.Store)
            ):
                yield node.lineno
        elif isinstance(node, ast.Call) and getattr(node.func, "id", None) in ("setattr", "delattr"):
            yield node.lineno


def length(function):
    """The lines of a function without its docstring."""
    docstring = function.body[0] if ast.get_docstring(function) else None
    return function.end_lineno - function.lineno + 1 - (docstring.end_lineno - docstring.lineno + 1 if docstring else 0)


@pytest.fixture(scope="module")
def trees():
    return {path: ast.parse(path.read_text(encoding="utf-8"), str(path)) for path in FILES}


def test_every_module_has_a_floor():
    floors = {name for floor in FLOORS for name in floor}
    assert {part(path) for path in FILES} == floors | {"__init__"}, "add what is new to FLOORS, where it belongs"


def test_arrows_run_one_way(trees):
    height = {name: n for n, floor in enumerate(FLOORS) for name in floor}
    wrong = [
        f"{named(path)} imports {used}"
        for path, tree in trees.items()
        for used in own_parts(tree)
        if used != part(path) and height[used] >= height[part(path)]
    ]
    assert not wrong


def test_the_package_itself_imports_nothing_of_its_own_until_asked(trees):
    assert not list(own_parts(trees[PACKAGE / "__init__.py"]))


def test_third_parties_are_few(trees):
    for around in (False, True):
        used = {
            module.split(".")[0]
            for path, tree in trees.items()
            if around or part(path) not in AROUND
            for module, _ in imports(tree)
        }
        assert used - set(sys.stdlib_module_names) - {"minip2p"} == (
            THIRD_PARTY | EXTRAS if around else THIRD_PARTY - {"transformers"}  # by encoder.py alone
        )


def test_nothing_is_patched_and_nothing_is_remembered(trees):
    found = [f"{named(path)}:{line}" for path, tree in trees.items() for line in (*patches(tree), *state(tree))]
    assert not found


@pytest.mark.parametrize(
    "bad",
    [
        "m.register_forward_hook(f)",
        "m.forward = f",
        "m.a.forward: F = f",
        "setattr(m, 'forward', f)",
        "cache = {}",
        "seen: list = []",
        "x = [i for i in y]",
        "d = collections.defaultdict(int)",
        "_D = dict(a=1)",
        "def f():\n    global x",
        "@functools.cache\ndef f(): ...",
        "@lru_cache(maxsize=1)\ndef f(): ...",
    ],
)
def test_the_rules_catch_what_they_forbid(bad):
    tree = ast.parse(bad)
    assert [*patches(tree), *state(tree)]


def lines_of(paths):
    """How many lines the files have that are not blank."""
    return sum(bool(line.strip()) for path in paths for line in path.read_text(encoding="utf-8").splitlines())


def test_the_core_can_be_read_in_an_evening():
    """The reading order, which is all one needs to understand an edit; and the core as a whole."""
    order = [ROOT / name for name in re.findall(r"^\| \d+ \| `(minip2p/.*?)`", README, re.MULTILINE)]
    core = [path for path in FILES if part(path) not in AROUND]
    assert lines_of(order) <= 2000, f"{lines_of(order)} lines that are not blank in the reading order"
    assert lines_of(core) <= 3400, f"{lines_of(core)} lines that are not blank in the core"


def test_files_and_functions_stay_short(trees):
    long = [
        f"{named(path)}: {lines} lines"
        for path in FILES
        if part(path) != "tiny"
        if (lines := len(path.read_text(encoding="utf-8").splitlines())) > 250
    ]
    long += [
        f"{named(path)}: {node.name}: {lines} lines"
        for path, tree in trees.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef)
        if (lines := length(node)) > 40
    ]
    assert not long


def test_the_readme_has_a_true_count_of_lines_for_every_file_of_its_reading_order():
    """About so many: within a tenth."""
    rows = re.findall(r"^\| \d+ \| `(minip2p/[\w/]+\.py)` \| (\d+) \|", README, re.MULTILINE)
    assert len(rows) >= 10
    false = []
    for name, said in rows:
        lines = len((ROOT / name).read_text(encoding="utf-8").splitlines())
        if abs(int(said) - lines) > lines / 10:
            false.append(f"{name} has {lines} lines, the README says {said}")
    assert not false


def test_the_readme_reads_upwards():
    """No file of the reading order needs a later one to be understood first: floors rise, but for the first two."""
    order = [name.split("/")[1].removesuffix(".py") for name in re.findall(r"^\| \d+ \| `(minip2p/.*?)`", README, re.M)]
    height = {name: n for n, floor in enumerate(FLOORS) for name in floor}
    assert all(height[a] <= height[b] for a, b in pairwise(order)), order


def test_what_the_readme_names_is_there():
    names = re.findall(r"`((?:minip2p|weights|tests)/[\w./-]*|[\w-]+\.(?:txt|cfg|toml))`|\]\(([\w./-]+)\)", README)
    missing = [name for pair in names for name in pair if name and not (ROOT / name).exists()]
    assert not missing


def test_the_wheel_has_every_package():
    config = ConfigParser()
    config.read(ROOT / "setup.cfg")
    listed = set(config["options"]["packages"].split())
    there = {".".join(path.parent.relative_to(ROOT).parts) for path in PACKAGE.rglob("__init__.py")}
    assert listed == there


def test_what_is_needed_is_pinned():
    config = ConfigParser()
    config.read(ROOT / "setup.cfg")
    extras = config["options.extras_require"]
    wanted = [*config["options"]["install_requires"].split(), *extras["dev"].split(), *extras["sweep"].split()]
    wanted.remove("minip2p[sweep]")
    pins = dict(re.findall(r"^([\w-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
    assert {name.split(">")[0] for name in wanted} <= pins.keys()
    assert tomllib.loads((ROOT / "pyproject.toml").read_text()).keys() == {"build-system", "tool"}


def fenced(language):
    """The README's blocks of code in a language."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    return [code for said, code in blocks if said == language]


def test_the_readmes_python_runs(tmp_path, monkeypatch):
    """All of its blocks, one after the other, at two steps."""
    monkeypatch.chdir(tmp_path)
    blocks = fenced("python")
    assert len(blocks) == 7
    code = "\n".join(blocks).replace("seed=1", "seed=1, steps=2").replace('"direct"', '"direct", steps=2')
    code = code.replace("tests/data", str(ROOT / "tests" / "data"))
    names = {}
    exec(compile(code, "README.md", "exec"), names)
    assert (tmp_path / "tiger.png").exists() and names["heat"].shape == (2, 128, 128) and names["maps"]


def test_the_readmes_grid_is_a_grid():
    (grid,) = fenced("toml")
    assert Grid.from_fields(tomllib.loads(grid)).compared == ["seed", "target", "cross", "heads"]


def test_the_readmes_commands_are_commands():
    said = re.findall(r"^minip2p (.*)$", "".join(fenced("")), re.MULTILINE)
    assert len(said) >= 5
    for command in said:
        parser().parse_args(shlex.split(command))
