"""How the packages are built: modules, lines, floors of imports and circles, of this checkout or of another.

    python tests/benchmarks/structure.py [FOLDER ...]

A module that imports nothing of ours is on floor 1; any other one floor above the highest that it imports. Modules that
import each other, in a circle of any length, count as one. Imports inside functions and those for type checkers alone
count too. Prints a table and one JSON line.
"""

from __future__ import annotations

import argparse
import ast
import json
from collections.abc import Iterator, Mapping
from pathlib import Path

PACKAGES = ("spaces", "pruning", "search")


def modules(root: Path) -> dict[str, Path]:
    """Dotted name -> file."""
    found = {}
    for path in sorted(path for package in PACKAGES for path in (root / package).rglob("*.py")):
        found[".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")] = path
    return found


def imported(path: Path, known: Mapping[str, Path]) -> Iterator[str]:
    """Modules of ours that a file imports; of `from a import b` it is `a.b` where that is a module."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom) and node.module in known:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in known else node.module


def circles(arrows: Mapping[str, set[str]]) -> list[list[str]]:
    """Strongly connected components, each sorted, those imported first come first (Tarjan's algorithm)."""
    order: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(name: str) -> None:
        order[name] = low[name] = len(order)
        stack.append(name)
        for other in sorted(arrows[name]):
            if other not in order:
                visit(other)
                low[name] = min(low[name], low[other])
            elif other in stack:
                low[name] = min(low[name], order[other])
        if low[name] == order[name]:
            place = stack.index(name)
            found.append(sorted(stack[place:]))
            del stack[place:]

    for name in sorted(arrows):
        if name not in order:
            visit(name)
    return found


def floors(arrows: Mapping[str, set[str]]) -> dict[str, int]:
    """Module -> its floor."""
    known: dict[str, int] = {}
    for members in circles(arrows):
        below = {other for name in members for other in arrows[name]} - set(members)
        known |= dict.fromkeys(members, 1 + max((known[other] for other in below), default=0))
    return known


def figures(root: Path) -> dict[str, dict[str, int]]:
    """Package -> its figures; floors and circles are of a package by itself."""
    paths = modules(root)
    arrows = {name: {*imported(path, paths)} - {name} for name, path in paths.items()}
    rows = {}
    for package in PACKAGES:
        own = {name: path for name, path in paths.items() if name.partition(".")[0] == package}
        inside = {name: arrows[name] & own.keys() for name in own}
        lines = [len(path.read_text().splitlines()) for path in own.values()]
        rows[package] = {
            "modules": len(own),
            "lines": sum(lines),
            "longest": max(lines),
            "in one folder": max(len(list(folder.glob("*.py"))) for folder in {path.parent for path in own.values()}),
            "floors": max(floors(inside).values()),
            "circles": sum(len(members) > 1 for members in circles(inside)),
        }
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="*", type=Path, default=[Path(__file__).parents[2]], metavar="FOLDER")
    for folder in parser.parse_args().folders:
        rows = figures(folder)
        names = list(rows[PACKAGES[0]])
        print(f"{folder.name:16}" + "".join(f"{name:>15}" for name in names))
        for package, row in rows.items():
            print(f"{package:16}" + "".join(f"{row[name]:15,}" for name in names))
        print(json.dumps({"checkout": folder.name, **rows}))


if __name__ == "__main__":
    main()
