"""The rules of the house: imports run one way, attention is passed and never patched, names say what things are."""

import ast
import re
import sys
import tomllib
from configparser import ConfigParser
from pathlib import Path

import pytest
from paths import ROOT

PACKAGE = ROOT / "minip2p"
README = (ROOT / "README.md").read_text(encoding="utf-8")
FILES = sorted(path for path in PACKAGE.rglob("*.py") if "weights" not in path.parts)
TESTS = sorted((ROOT / "tests").rglob("*.py"))
SCRIPTS = sorted([*(ROOT / "benchmarks").glob("*.py"), *(ROOT / "examples").rglob("*.py")])

# A file imports from the floors below its own, and from its own folder. The lowest floor comes first.
FLOORS = (
    ("errors", "validation"),
    ("io", "layers"),
    ("config",),
    ("attention", "text", "metrics"),
    ("unet", "vae", "sched"),
    ("checkpoints",),
    ("sampling",),
    ("p2p", "inversion"),
    ("planner",),
    ("pipeline",),
    ("baselines",),
    ("sweeps", "tiny"),
    ("evaluation",),
    ("pairs",),
    ("web",),
    ("cli",),
    ("__main__",),
)
# Inside of these folders the files have an order too: each imports only from files before it.
ORDER = {
    "sampling": (
        "progress",
        "batches",
        "preview",
        "conditioning",
        "settings",
        "guidance",
        "qk_cache",
        "run_file",
        "trajectory",
        "sampler",
        "record",
        "metadata",
    ),
    "p2p": (
        "algebra",
        "warp",
        "published",
        "alignment",
        "schedules",
        "local_blend",
        "options",
        "edit_plan",
        "controller",
        "places",
        "targets",
        "batching",
        "editing",
        "live",
        "separate",
    ),
}
CORE = (
    "validation",
    "errors",
    "config",
    "layers",
    "io",
    "attention",
    "text",
    "unet",
    "vae",
    "sched",
    "checkpoints",
    "sampling",
    "p2p",
    "inversion",
    "planner",
    "pipeline",
    "baselines",
)
CORE_LIBRARIES = {"torch", "numpy", "einops", "PIL", "safetensors", "transformers", "tqdm", "huggingface_hub"}
OPTIONAL_LIBRARIES = {"llguidance", "pillow_heif", "yaml"}  # imported for what needs them, and named where missing
EXTRA_LIBRARIES = {"matplotlib", "pyarrow", "ray", "skimage", "starlette", "uvicorn"}  # only outside of the core
BANNED_NAMES = {
    *("said", "made", "found", "kept", "given", "whole", "own", "one", "some", "ours", "beside", "along", "again")
}
CONTAINERS = (ast.List, ast.Dict, ast.Set, ast.ListComp, ast.DictComp, ast.SetComp)
MUTABLE_CALLS = {"list", "dict", "set", "bytearray", "defaultdict", "deque", "Counter", "OrderedDict", "count", "cycle"}


def short(path: Path) -> str:
    return str(path.relative_to(ROOT))


def room(path: Path) -> str:
    """The file or folder directly under minip2p/ that a file belongs to: a name in FLOORS."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(tree):
    """All modules that are imported anywhere in a file, each with the name taken from it, if any."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield from ((node.module, alias.name) for alias in node.names)


def internal_imports(tree):
    """The modules of minip2p that a file imports, as parts: ("p2p", "algebra")."""
    for module, name in imports(tree):
        top, *rest = module.split(".")
        if top == "minip2p":
            parts = [*rest, name] if name and (PACKAGE.joinpath(*rest, f"{name}.py")).exists() else rest
            yield tuple(parts or [name])


def module_state(tree):
    """The lines of a module that create state which outlives a call."""
    for node in tree.body:
        if isinstance(node, ast.Assign | ast.AnnAssign | ast.AugAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            call = getattr(node.value, "func", None)
            name = getattr(call, "id", getattr(call, "attr", None))
            is_dunder = all(isinstance(t, ast.Name) and re.fullmatch("__.*__", t.id) for t in targets)
            if not is_dunder and (isinstance(node.value, CONTAINERS) or name in MUTABLE_CALLS):
                yield node.lineno
    for node in ast.walk(tree):
        if isinstance(node, ast.Global):
            yield node.lineno
        if isinstance(node, ast.FunctionDef):  # a cache is state too
            decorators = [ast.unparse(decorator) for decorator in node.decorator_list]
            yield from (node.lineno for text in decorators if re.match(r"(functools\.)?(lru_)?cache\b", text))


def patches(tree):
    """The lines that reach into a module instead of passing it an argument."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            is_hook = re.fullmatch("register_.*hook", node.attr)
            if is_hook or (node.attr in ("forward", "__call__") and isinstance(node.ctx, ast.Store)):
                yield node.lineno
        elif isinstance(node, ast.Call) and getattr(node.func, "id", None) in ("setattr", "delattr"):
            yield node.lineno


def bound_names(tree):
    """Every name that a file binds: functions, classes, parameters, variables, attributes, keyword arguments."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name, node.lineno
        elif isinstance(node, ast.arg) or (isinstance(node, ast.keyword) and node.arg):
            yield node.arg, node.lineno
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id, node.lineno
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr, node.lineno


def positional_arguments(function):
    """How many positional arguments a function takes, without self and cls."""
    arguments = [*function.args.posonlyargs, *function.args.args]
    return len([argument for argument in arguments if argument.arg not in ("self", "cls")])


@pytest.fixture(scope="module")
def trees():
    return {path: ast.parse(path.read_text(encoding="utf-8"), str(path)) for path in FILES}


def test_every_room_has_a_floor_and_there_are_at_most_30():
    floors = {name for floor in FLOORS for name in floor}
    assert {room(path) for path in FILES} == floors | {"__init__"}, "add what is new to FLOORS, where it belongs"
    rooms = [path for path in PACKAGE.iterdir() if path.name != "__pycache__"]
    assert len(rooms) <= 30, sorted(path.name for path in rooms)


def test_imports_run_one_way(trees):
    height = {name: n for n, floor in enumerate(FLOORS) for name in floor}
    wrong = [
        f"{short(path)} imports {'.'.join(used)}"
        for path, tree in trees.items()
        for used in internal_imports(tree)
        if room(path) != "__init__" and used[0] != room(path) and height[used[0]] >= height[room(path)]
    ]
    assert not wrong


@pytest.mark.parametrize("folder", ORDER)
def test_files_inside_a_folder_have_an_order(folder, trees):
    order = {name: n for n, name in enumerate(ORDER[folder])}
    files = [path for path in FILES if room(path) == folder and path.stem != "__init__"]
    assert {path.stem for path in files} == order.keys()
    wrong = [
        f"{path.stem} imports {used[1]}"
        for path in files
        for used in internal_imports(trees[path])
        if used[0] == folder and order[used[1]] >= order[path.stem]
    ]
    assert not wrong


def test_no_folder_has_a_cycle_of_imports(trees):
    uses = {}
    for path, tree in trees.items():
        name = tuple(part for part in path.relative_to(PACKAGE).with_suffix("").parts if part != "__init__")
        uses.setdefault(name, set()).update(internal_imports(tree))

    def visit(name, above):
        assert name not in above, " -> ".join(".".join(part) for part in (*above, name))
        for used in uses.get(name, ()):
            if used != name:
                visit(used, (*above, name))

    for name in [name for name in uses if name]:
        visit(name, ())


def test_the_package_itself_imports_nothing_until_asked(trees):
    """So `minip2p --help` answers without loading torch. Imports for type checkers do not count."""
    tree = trees[PACKAGE / "__init__.py"]
    executed = [
        node for node in tree.body if not (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test))
    ]
    assert not list(internal_imports(ast.Module(executed, [])))


def test_the_core_needs_few_libraries(trees):
    for allowed, paths in (
        (CORE_LIBRARIES | OPTIONAL_LIBRARIES, [path for path in FILES if room(path) in CORE]),
        (CORE_LIBRARIES | OPTIONAL_LIBRARIES | EXTRA_LIBRARIES, FILES),
    ):
        used = {module.split(".")[0] for path in paths for module, _ in imports(trees[path])}
        assert used - set(sys.stdlib_module_names) - {"minip2p"} <= allowed


def test_nothing_is_patched_and_no_module_has_state(trees):
    lines = [f"{short(path)}:{line}" for path, tree in trees.items() for line in (*patches(tree), *module_state(tree))]
    assert not lines


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
    assert [*patches(tree), *module_state(tree)]


@pytest.mark.parametrize("code", ["def found(): ...", "kept = 1", "x.said = 2", "f(made=3)", "def f(own): ..."])
def test_the_rule_of_names_catches_what_it_forbids(code):
    assert BANNED_NAMES.intersection(name for name, _ in bound_names(ast.parse(code)))


def test_names_say_what_things_are():
    wrong = []
    for path in [*FILES, *TESTS, *SCRIPTS]:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        wrong += [f"{short(path)} {name}" for name, _ in bound_names(tree) if name in BANNED_NAMES]
    assert set(wrong) <= {"minip2p/tiny/judge_network.py whole"}  # a key of the judge's weights


def test_functions_take_at_most_seven_positional_arguments(trees):
    wrong = [
        f"{short(path)}:{node.lineno} {node.name}"
        for path, tree in trees.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef) and positional_arguments(node) > 7
    ]
    assert not wrong


def test_formatting_is_the_formatters():
    skips = [
        short(path) for path in [*FILES, *TESTS, *SCRIPTS] for _ in re.findall("fmt: skip$", path.read_text(), re.M)
    ]
    assert len(skips) < 20, skips


def test_tests_import_neither_other_tests_nor_private_names():
    wrong = []
    for path in TESTS:
        for module, name in imports(ast.parse(path.read_text(encoding="utf-8"))):
            last = (name or module).split(".")[-1]
            is_private = module.startswith("minip2p") and last.startswith("_") and not last.startswith("__")
            if is_private or module.split(".")[0].startswith("test_"):
                wrong.append(f"{short(path)} imports {module}.{name}")
    assert not wrong


def test_tests_mirror_the_package():
    """The tests of minip2p/a/b.py are in tests/a/: a folder's tests can be run alone."""
    folders = {path.relative_to(ROOT / "tests").parts[0] for path in TESTS if path.parent != ROOT / "tests"}
    rooms = {room(path) for path in FILES}
    assert folders - rooms <= {"support", "data", "docs", "golden", "benchmarks", "typing", "browser"}


def test_the_wheel_has_every_package_and_says_that_it_has_types():
    config = ConfigParser()
    config.read(ROOT / "setup.cfg")
    listed = set(config["options"]["packages"].split())
    assert listed == {".".join(path.parent.relative_to(ROOT).parts) for path in FILES if path.name == "__init__.py"}
    assert (PACKAGE / "py.typed").exists() and "py.typed" in config["options.package_data"]["minip2p"].split()


def test_every_dependency_is_pinned():
    config = ConfigParser()
    config.read(ROOT / "setup.cfg")
    extras = config["options.extras_require"]
    wanted = config["options"]["install_requires"].split() + [
        name for extra in extras.values() for name in extra.split()
    ]
    wanted = [name for name in wanted if not name.startswith("minip2p")]
    pins = dict(re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
    assert {re.split("[><=~;]", name)[0] for name in wanted} <= pins.keys()
    assert tomllib.loads((ROOT / "pyproject.toml").read_text()).keys() == {"build-system", "tool"}


def test_the_readme_is_short_and_its_reading_order_exists():
    assert len(README.split()) <= 1300
    order = re.findall(r"^\d+\. `(minip2p/[\w/]+\.py)`", README, re.MULTILINE)
    assert 5 <= len(order) <= 10 and all((ROOT / name).exists() for name in order)


def test_every_file_that_the_readme_names_exists():
    """Paths in backticks; those of the table of folders are relative to the folders of their row."""
    missing = [
        name
        for name in re.findall(r"`((?:minip2p|weights|tests|docs)/[\w./-]*)`", README)
        if not (ROOT / name).exists()
    ]
    for row in re.findall(r"^\| (`[\w./`, ]+) \| (.*) \|$", README, re.MULTILINE):
        folders, files = (re.findall(r"`([\w./]+)`", cell) for cell in row)
        for name in (file for file in files if file.endswith(".py")):
            if not any((PACKAGE / folder / name).exists() for folder in [*folders, "."]):
                missing.append(name)
    assert not missing


def test_the_readmes_links_work_on_a_package_index_too():
    targets = re.findall(r"\]\(([^)]+)\)", README)
    home = re.compile(r"https://(?:raw\.githubusercontent|github)\.com/minip2p/minip2p/(?:(?:blob|tree)/)?main/(.*)")
    assert targets and all(target.startswith("https://") for target in targets)
    files = [match[1] for target in targets if (match := home.fullmatch(target))]
    assert len(files) >= 5 and all((ROOT / file).exists() for file in files)
