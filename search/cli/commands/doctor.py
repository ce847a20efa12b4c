"""`doctor`: what a study needs of this machine, what of it is here, and what to do about the rest."""

from __future__ import annotations

import argparse
import os
import platform
import re
import shutil
import socket
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from http.client import HTTPException
from importlib.metadata import PackageNotFoundError, requires, version
from itertools import groupby
from pathlib import Path
from urllib.parse import urlsplit

import joblib

from search.cli.commands.reply import Reply
from search.cli.screen import styled
from search.errors import EnvironmentProblem, UsageError
from search.files import open_root
from search.masking import masked
from search.options import OPTIONS
from search.placement import devices, placement_of
from search.storage import fault_of
from search.store.locks import is_held
from search.store.mlflow_place import TRACKING, server_named, unused_place
from search.workloads.cifar10 import REMEDY as CIFAR_REMEDY
from search.workloads.cifar_files import find_files
from search.workloads.fashion_mnist import DEBIAN_FOLDER, idx_files
from search.workloads.fashion_mnist import REMEDY as FASHION_REMEDY
from spaces.wording import counted

OK, LACKS, ABSENT = "ok", "lacks", "absent"
"""Here; not here, and needed by every study; not here, and needed by some only."""
STYLE_OF = {OK: "green", LACKS: "red", ABSENT: "yellow"}
SECONDS = 3.0
"""How long a server is waited for."""
LEAST_SPACE = 100 * 2**20
"""Bytes that a small study, with its records and weights, fills."""
GIB = 2**30


@dataclass(frozen=True)
class Finding:
    """One line.

    Attributes:
        state: `OK`, `LACKS` or `ABSENT`.
        remedy: what to do; None if all is well.
    """

    part: str
    name: str
    state: str
    detail: str
    remedy: str | None = None


def doctor(arguments: argparse.Namespace) -> Reply:
    """Versions, devices, data sets, root and stores."""
    root = Path(arguments.root).absolute()
    found = [*_versions(), *_devices(), *_data_sets(root / "cache"), *_root(arguments.root, root), *_stores(root)]
    found = [Finding(*(text and masked(text) for text in asdict(one).values())) for one in found]
    lacking = [one.name for one in found if one.state == LACKS]
    data = {"ready": not lacking, "lacking": lacking, "findings": [asdict(one) for one in found]}
    parts = [
        "\n".join([styled(part, "bold"), *map(_line, ones)]) for part, ones in groupby(found, key=lambda one: one.part)
    ]
    parts.append(f"A study lacks: {', '.join(lacking)}" if lacking else "All that a plain study needs is here.")
    return Reply(data, "\n\n".join(parts), 3 if lacking else 0)


def _line(one: Finding) -> str:
    state = styled(one.state, STYLE_OF[one.state]) + " " * (len(ABSENT) - len(one.state))
    return f"  {state}  {one.name}: {one.detail}" + (f"; {one.remedy}" if one.remedy else "")


def _versions() -> Iterator[Finding]:
    part = "Versions"
    yield Finding(part, "prunefront", OK, version("prunefront"))
    yield Finding(part, "python", OK, f"{platform.python_version()} ({sys.executable})")
    for requirement in requires("prunefront") or ():
        name = re.split(r"[^A-Za-z0-9._-]", requirement)[0]
        extra = re.search(r"extra == ['\"]([\w-]+)", requirement)
        if extra and extra[1] == "test":
            continue
        if found := _installed(name):
            yield Finding(part, name, OK, found)
        elif extra:
            remedy = f"pip install 'prunefront[{extra[1]}]' to use it"
            yield Finding(part, name, ABSENT, f"extra {extra[1]}, not installed", remedy)
        else:
            yield Finding(part, name, LACKS, "not installed", "pip install prunefront again")


def _devices() -> Iterator[Finding]:
    for device in devices():
        placement = placement_of(device, "fp32", False, None)
        able = [word for word in OPTIONS["precision"].kinds if _computes(device, word)]
        memory, free = _memory(), placement.free_bytes
        size = f"{free / GIB:.1f} GiB free" if free != float("inf") else f"{memory / GIB:.1f} GiB of memory"
        cores = f", {counted(joblib.cpu_count(), 'core')}" if device == "cpu" else ""
        yield Finding("Devices", device, OK, f"{placement.name}{cores}, {size}, {', '.join(able)}")


def _computes(device: str, precision: str) -> bool:
    try:
        placement_of(device, precision, False, None)
    except UsageError:
        return False
    return True


def _memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _data_sets(cache: Path) -> Iterator[Finding]:
    part, download = "Data sets", cache / "data"
    yield Finding(part, "digits", OK, "ships with scikit-learn")
    raw = download / "FashionMNIST" / "raw"
    place = next((one for one in (DEBIAN_FOLDER, raw) if idx_files(one)), None)
    yield _data_set("fashion-mnist", place, f"{DEBIAN_FOLDER} and {raw}", FASHION_REMEDY)
    try:
        found = find_files(download)
    except EnvironmentProblem as error:
        yield Finding(part, "cifar10", ABSENT, str(error))
    else:
        yield _data_set("cifar10", found[0].parent if found else None, str(download), CIFAR_REMEDY)


def _data_set(name: str, place: Path | None, looked: str, remedy: str) -> Finding:
    if place:
        return Finding("Data sets", name, OK, str(place))
    return Finding("Data sets", name, ABSENT, f"not in {looked}, so it would be downloaded", f"or {remedy}")


def _root(given: str, root: Path) -> Iterator[Finding]:
    part = "Root"
    try:
        open_root(given, create=False)
    except EnvironmentProblem as error:
        yield Finding(part, "folder", LACKS, str(error))
        return
    yield Finding(part, "folder", OK, f"{root} is writable" if root.is_dir() else f"{root} can be made")
    nearest = next(one for one in (root, *root.parents) if one.is_dir())
    free = shutil.disk_usage(nearest).free
    said = f"{free / GIB:.1f} GiB free"
    yield (
        Finding(part, "space", OK, said)
        if free >= LEAST_SPACE
        else Finding(part, "space", LACKS, said, "free space there, or choose another --root")
    )
    studies = sorted(path.parent for path in root.glob("*/study.json"))
    running = [path.name for path in studies if is_held(path / "study.lock")]
    yield Finding(
        part, "studies", OK, f"{len(studies)}" + (f"; in use by a process: {', '.join(running)}" if running else "")
    )


def _stores(root: Path) -> Iterator[Finding]:
    part, name = "Stores", "MLflow's database"
    database = root / "mlflow.db"
    if fault := fault_of(database):
        yield Finding(part, name, ABSENT, f"{database}: {fault}", "the next search sets it aside and writes it anew")
    else:
        yield Finding(part, name, OK, f"{database}" if database.is_file() else "the first study makes it")
    yield from _mlflow_server()
    yield from _ray()
    yield from _postgresql()


def _mlflow_server() -> Iterator[Finding]:
    part, name = "Stores", "MLflow's server"
    try:
        server = server_named()
    except UsageError as error:
        yield Finding(part, name, LACKS, str(error))
        return
    if server is None:
        yield Finding(part, name, OK, unused_place() or f"{TRACKING} names none; the database is used")
        return
    try:
        parts = urlsplit(server)
        plain = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()  # its health needs no credentials
        urllib.request.urlopen(f"{plain}/health", timeout=SECONDS).close()
    except urllib.error.HTTPError as error:
        error.close()
        yield Finding(part, name, OK, f"{server} answers")
    except (OSError, HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        remedy = f"start it, correct {TRACKING} or unset it; a search would go on, and catch up once it is there"
        yield Finding(part, name, ABSENT, f"{server} cannot be reached ({reason})", remedy)
    else:
        yield Finding(part, name, OK, f"{server} answers")


def _ray() -> Iterator[Finding]:
    part, name, address = "Stores", "Ray cluster", os.environ.get("RAY_ADDRESS", "")
    if not _installed("ray"):
        yield Finding(part, name, ABSENT, "Ray is not installed", "pip install 'prunefront[ray]' for --executor ray")
        return
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not address:
        yield Finding(part, name, OK, "RAY_ADDRESS names none; --workers N alone uses this machine")
    elif not port.isdecimal():
        yield Finding(part, name, ABSENT, f"RAY_ADDRESS is {address!r}", "it should be HOST:PORT, such as head:6379")
    else:
        try:
            socket.create_connection((host, int(port)), SECONDS).close()
            yield Finding(part, name, OK, f"{address} answers")
        except (OSError, OverflowError) as error:
            remedy = "start it, or correct RAY_ADDRESS; --executor ray needs it"
            yield Finding(part, name, ABSENT, f"{address} cannot be reached ({error})", remedy)


def _postgresql() -> Iterator[Finding]:
    part, name = "Stores", "PostgreSQL"
    if _installed("psycopg"):
        yield Finding(part, name, OK, "psycopg is installed")
    else:
        remedy = "pip install 'prunefront[postgresql]' for --optuna-storage"
        yield Finding(part, name, ABSENT, "psycopg is not installed", remedy)


def _installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
