"""A study is one process and files, and what its user names beside them: nothing else is used."""

from __future__ import annotations

import ast
from pathlib import Path

from search.storage import sqlite_url
from search.store.mlflow_store import store_uri

ROOT = Path(__file__).parents[2]
FILES = [path for folder in ("spaces", "pruning", "search") for path in sorted((ROOT / folder).rglob("*.py"))]
NETWORK = {
    "socket",
    "ssl",
    "ftplib",
    "requests",
    "httpx",
    "aiohttp",
    "urllib3",
    "grpc",
    "redis",
    "psycopg",
    "pymysql",
    "ray",
}
MODULES = {"urllib.request", "http.client", "http.server", "torch.hub", "torch.distributed", "xmlrpc.client"}
SERVERS = {
    "search/cli/commands/doctor.py": "whether the servers that the environment names answer",
    "search/cli/commands/study.py": "the port of MLflow's page",
    "search/cli/mlflow_ui.py": "the same, once it listens",
    "search/executors/child.py": "none: a pair of sockets between a study and its worker",
    "search/executors/process.py": "likewise",
    "search/executors/ray_cluster.py": "the cluster that the user names",
    "search/executors/ray_worker.py": "the same cluster",
    "search/weights/hub.py": "code and weights of a repository that the user names and trusts",
}
"""Files that use a network, and what for."""
FOLDERS = {
    "search/networks/timm_networks.py", "search/networks/torchvision_networks.py", "search/workloads/choices.py",
}  # fmt: skip
"""Files that ask `torch.hub` where it keeps its files, and for nothing else."""


def imported_by(path: Path) -> set[str]:
    """Every module imported in a file, and what is imported from one."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def dotted_in(path: Path) -> set[str]:
    return {ast.unparse(node) for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)}


def uses_network(path: Path) -> bool:
    reached = imported_by(path) | {name for name in dotted_in(path) if name.startswith("torch.")}
    return any(name in MODULES or name.partition(".")[0] in NETWORK for name in reached)


def test_networks_are_used_for_what_a_user_names():
    assert {str(path.relative_to(ROOT)) for path in FILES if uses_network(path)} == {*SERVERS} | FOLDERS
    for name in FOLDERS:
        assert "torch.hub" not in imported_by(ROOT / name)
        used = {word for word in dotted_in(ROOT / name) if word.startswith("torch.hub.")}
        assert used == {"torch.hub.get_dir"}, name


def test_one_module_chooses_a_device():
    """Elsewhere a tensor follows the one it is used with, or the placement."""
    used = {
        f"{path.relative_to(ROOT)}: {name}"
        for path in FILES
        if path.relative_to(ROOT) != Path("search", "placement.py")
        for name in dotted_in(path)
        if name.startswith(("torch.cuda", "torch.mps", "torch.xpu")) or name.endswith((".cuda", ".mps", ".xpu"))
    }
    timing = ("torch.cuda", "torch.cuda.get_device_name", "torch.cuda.Event", "torch.version.cuda")
    assert {name.partition(": ")[2] for name in used} == {*timing}
    assert {name.partition(":")[0] for name in used} == {"pruning/latency.py", "search/training/latency_cache.py"}


def test_both_databases_are_files_under_the_root(tmp_path):
    assert store_uri(tmp_path) == f"sqlite:///{tmp_path.resolve() / 'mlflow.db'}"
    url = sqlite_url(tmp_path / "study.db")
    assert (url.drivername, url.host, url.database) == ("sqlite", None, str(tmp_path / "study.db"))
