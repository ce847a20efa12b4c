"""What the folders may import and call, read from their syntax trees."""

from __future__ import annotations

import ast
import graphlib
import importlib.util
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import structure

ROOT = Path(__file__).parents[1]
FOLDERS = ("spaces", "pruning", "search")
BELOW = {"spaces": set(), "pruning": {"spaces"}, "search": {"spaces", "pruning"}}
ROOMS = {
    "adapters": {"errors", "workloads"},
    "given_workload": {"options"},
    "__init__": {"config", "metric", "namesakes", "progress", "results", "study", "workloads"},
    "process": {"errors"},
    "files": {"errors", "storage"},
    "progress": {"process", "wrapping"},
    "user_code": {"errors", "process"},
    "metric": {"errors"},
    "notebook": {"loggers", "process", "progress", "wrapping"},
    "networks": {"errors"},
    "weights": {"errors", "files", "networks", "user_code"},
    "placement": {"errors", "records"},
    "workloads": {
        "errors", "given_workload", "metric", "networks", "options", "placement", "user_code", "weights",
    },
    "training": {
        "checksum", "errors", "files", "metric", "placement", "process", "progress", "records", "storage", "user_code",
        "weights", "workloads",
    },
    "proposals": {"knew", "records"},
    "store": {
        "checksum", "config", "errors", "files", "given_workload", "masking", "metric", "options", "process",
        "progress", "proposals", "record_checks", "records", "storage",
    },
    "results": {
        "config", "errors", "files", "given_workload", "metric", "options", "proposals", "record_checks", "records",
        "storage", "store",
    },
    "report": {
        "config", "files", "given_workload", "masking", "metric", "options", "proposals", "records", "results", "store",
    },
    "identity": {"config", "errors", "placement", "progress", "records", "store", "training", "workloads"},
    "analysis": {"files", "metric", "progress", "results", "training"},
    "export": {
        "config", "errors", "files", "given_command", "given_workload", "identity", "metric", "placement", "progress",
        "records", "results", "store", "training", "user_code", "weights", "workloads", "wrapping",
    },
    "executors": {
        "config", "errors", "files", "given_workload", "identity", "metric", "placement", "process", "progress",
        "records", "store", "training", "user_code", "workloads",
    },
    "study": {
        "config", "errors", "executors", "export", "files", "goal", "identity", "metric", "notebook", "options",
        "placement", "progress", "proposals", "records", "results", "storage", "store", "training", "user_code",
        "workloads",
    },
    "cli": {
        "analysis", "config", "errors", "export", "files", "loggers", "masking", "metric", "namesakes", "networks",
        "options", "placement", "process", "progress", "report", "results", "storage", "store", "study", "training",
        "user_code", "weights", "workloads", "wrapping",
    },
    "config": {
        "errors", "files", "given_command", "given_workload", "goal", "masking", "metric", "options", "record_checks",
    },
    "goal": {"metric"},
    "dense": {"training"},
    "run": {"study"},
    "record_checks": {"knew", "records"},
    "records": {"knew"},
    "storage": {"errors"},
}  # fmt: skip
"""Folder or file of `search/` -> what of `search/` it may import besides itself. What is not listed imports none."""
ONLY_IN = {
    "optuna": {
        "search/proposals/sampler.py",
        "search/proposals/optuna_study.py",
        "search/store/optuna_file.py",
        "search/store/optuna_server.py",
    },
    "mlflow": {
        "search/export/registry.py",
        "search/store/mlflow_page.py",
        "search/store/mlflow_place.py",
        "search/store/mlflow_record.py",
        "search/store/mlflow_server.py",
        "search/store/mlflow_store.py",
        "search/store/system_metrics.py",
    },
    "ray": {"search/executors/ray_cluster.py", "search/executors/ray_worker.py"},
}
IMPORT_NAMES = {"scikit-learn": "sklearn"}
NOT_IMPORTED = {
    "nvidia-ml-py": "MLflow reads NVIDIA cards by it",
    "onnxscript": "torch.onnx.export needs it",
    "psycopg": "SQLAlchemy's driver of PostgreSQL",
}
FILES = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]


def imports_of(tree: ast.AST) -> Iterator[str]:
    """Every imported module, wherever in the file, also by a literal name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            yield node.module
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("importlib.import_module", "__import__"):
            yield from (a.value for a in node.args[:1] if isinstance(a, ast.Constant))


def top_imports(path: Path) -> set[str]:
    return {name.partition(".")[0] for name in imports_of(ast.parse(path.read_text()))}


def unsafe_calls(tree: ast.AST) -> Iterator[str]:
    """Calls that could execute what was read, and imports that would hide such a call."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module in ("pickle", "dill", "joblib", "marshal", "shelve"):
            yield node.module
        if not isinstance(node, ast.Call):
            continue
        name, options = ast.unparse(node.func), {k.arg: ast.unparse(k.value) for k in node.keywords}
        if re.fullmatch(r"(\w*[pP]ickle|dill|marshal|shelve)\.\w+|eval|exec|os\.(system|popen)", name):
            yield name
        if name.startswith("joblib.") and name != "joblib.cpu_count":
            yield name
        if re.fullmatch(r"yaml\.(unsafe_|full_)?load(_all)?", name):
            yield name
        if re.fullmatch(r"(torch|th)\.load", name) and options.get("weights_only") != "True":
            yield name
        if re.fullmatch(r"(np|numpy)\.load", name) and options.get("allow_pickle", "False") != "False":
            yield name
        if options.get("shell", "False") != "False":
            yield f"{name}(shell=...)"


def room(module: str) -> str:
    """Folder or file of `search/` that a module lies in."""
    return module.split(".")[1]


def test_there_is_something_to_look_at():
    assert len(FILES) > 30
    assert {path.relative_to(ROOT).parts[0] for path in FILES} == set(FOLDERS)


def test_packages_import_one_way():
    wrong = []
    for path in FILES:
        package = path.relative_to(ROOT).parts[0]
        used = top_imports(path) & {*FOLDERS, "tests"}
        wrong += [f"{path.relative_to(ROOT)} imports {name}" for name in used - BELOW[package] - {package}]
    assert wrong == []


def test_folders_of_search_import_downwards():
    wrong = []
    for path in sorted((ROOT / "search").rglob("*.py")):
        here = path.relative_to(ROOT / "search").parts[0].removesuffix(".py")
        used = {room(name) for name in imports_of(ast.parse(path.read_text())) if name.startswith("search.")}
        wrong += [f"{path.relative_to(ROOT)} imports search.{name}" for name in used - ROOMS.get(here, set()) - {here}]
    assert wrong == []


def test_no_two_rooms_import_each_other():
    order = graphlib.TopologicalSorter(ROOMS)
    assert list(order.static_order())  # raises CycleError


def test_no_modules_import_each_other():
    """In no circle, not even one for type checkers alone."""
    paths = structure.modules(ROOT)
    arrows = {name: {*structure.imported(path, paths)} - {name} for name, path in paths.items()}
    assert [circle for circle in structure.circles(arrows) if len(circle) > 1] == []


def test_folders_show_nothing_themselves():
    """What is public is shown by the three packages; a folder's `__init__` is its docstring."""
    shown = [
        str(path.relative_to(ROOT))
        for path in FILES
        if path.name == "__init__.py" and len(ast.parse(path.read_text()).body) > 1
    ]
    offered = [
        *(f"{folder}/__init__.py" for folder in FOLDERS),
        "search/cli/__init__.py",
        "search/workloads/__init__.py",
    ]
    assert sorted(shown) == sorted(offered)


def test_libraries_stay_in_their_rooms():
    wrong = []
    for path in FILES:
        here = str(path.relative_to(ROOT))
        elsewhere = {library for library, rooms in ONLY_IN.items() if here not in rooms}
        wrong += [f"{here} imports {library}" for library in elsewhere & top_imports(path)]
    assert wrong == []


def test_nothing_read_is_executed():
    wrong = {str(path.relative_to(ROOT)): list(unsafe_calls(ast.parse(path.read_text()))) for path in FILES}
    assert {path: calls for path, calls in wrong.items() if calls} == {}


@pytest.mark.parametrize(
    "code",
    [
        "pickle.load(f)", "torch.load(p)", "torch.load(p, weights_only=False)", "eval('1')", "yaml.load(s)",
        "subprocess.run(c, shell=True)", "np.load(p, allow_pickle=True)", "os.system('x')", "from pickle import loads",
        "joblib.load(p)",
    ],
)  # fmt: skip
def test_unsafe_calls_are_seen(code):
    assert list(unsafe_calls(ast.parse(code)))


@pytest.mark.parametrize(
    "code",
    ["torch.load(p, weights_only=True)", "model.eval()", "yaml.safe_load(s)", "json.load(f)", "joblib.cpu_count()"],
)
def test_safe_calls_are_not(code):
    assert not list(unsafe_calls(ast.parse(code)))


def test_spaces_needs_only_numpy():
    used = set().union(*(top_imports(path) for path in FILES if path.is_relative_to(ROOT / "spaces")))
    assert used - set(sys.stdlib_module_names) - {"spaces"} == {"numpy"}


@pytest.mark.parametrize("name", FOLDERS)
def test_the_name_is_ours(name):
    """Nobody else's package of that name is found first."""
    spec = importlib.util.find_spec(name)
    assert spec is not None
    assert Path(spec.origin) == ROOT / name / "__init__.py"


def test_an_editable_install_is_a_path():
    """Type checkers and editors do not follow the import hook that setuptools makes otherwise."""
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-dir"] == {"": "."}


def requirements() -> dict[str, tuple[str, str]]:
    """Requirement -> its name and the comment behind it."""
    text = (ROOT / "pyproject.toml").read_text()
    project = tomllib.loads(text)["project"]
    listed = project["dependencies"] + [
        r for name, g in project["optional-dependencies"].items() if name != "test" for r in g
    ]
    found = {}
    for requirement in listed:
        comment = re.search(rf'^ *"{re.escape(requirement)}",? *# *(.+)$', text, re.MULTILINE)
        found[requirement] = re.match(r"[A-Za-z0-9_-]+", requirement)[0], comment[1] if comment else ""
    return found


@pytest.mark.parametrize(("requirement", "named"), requirements().items())
def test_every_dependency_names_a_file_that_imports_it(requirement, named):
    name, comment = named
    paths = [ROOT / word for word in re.findall(r"[\w/]+(?:\.py|/)(?=[,:\s]|$)", comment)]
    assert paths, f"{requirement} carries no comment that names a file"
    for path in paths:
        assert path.exists(), f"{path.relative_to(ROOT)} does not exist"
        if name in NOT_IMPORTED:
            assert NOT_IMPORTED[name] in comment
            continue
        files = sorted(path.rglob("*.py")) if path.is_dir() else [path]
        assert any(IMPORT_NAMES.get(name, name) in top_imports(file) for file in files), (
            f"{path} does not import {name}"
        )


def test_every_import_is_a_dependency():
    declared = {IMPORT_NAMES.get(name, name) for name, _ in requirements().values()}
    used = set().union(*(top_imports(path) for path in FILES))
    assert used - set(sys.stdlib_module_names) - set(FOLDERS) <= declared


def test_commands_that_only_read_a_study_do_without_pytorch():
    asked = (
        "import sys, search.cli.commands.study, search.report.page;"
        "print([x for x in ('torch', 'optuna', 'mlflow') if x in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
