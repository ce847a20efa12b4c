"""Real servers for tests: MLflow's, and PostgreSQL of Debian's package; each may be ended and begun again."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

SECONDS = 90
"""The longest that a server is waited for."""


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class MlflowProcess:
    """`mlflow server` with one worker, its database and files in a folder; it serves artifacts itself."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._port = folder, free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self.uri = f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        """Start it, and wait until it answers."""
        command = [
            sys.executable, "-m", "mlflow", "server", "--backend-store-uri", f"sqlite:///{self._folder / 'server.db'}",
            "--artifacts-destination", str(self._folder / "files"), "--host", "127.0.0.1", "--port", str(self._port),
            "--workers", "1",
        ]  # fmt: skip
        log = (self._folder / "server.log").open("ab")
        environment = {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true"}
        self._process = subprocess.Popen(
            command, cwd=self._folder, stdout=log, stderr=log, env=environment, start_new_session=True
        )
        log.close()
        _wait_for(self._answers, "MLflow's server")

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.uri}/health", timeout=5) as answer:
                return answer.status == 200
        except OSError:
            return False

    def kill(self) -> None:
        """End it and its workers at once."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None


def postgres_programs() -> Path | None:
    """The folder of `initdb` and `pg_ctl`; None where PostgreSQL's server is not installed."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/pg_ctl"))
    return found[-1].parent if found else None


class PostgresCluster:
    """PostgreSQL in a folder of its own that lets in user `ann` with a password; it does not run as root.

    Attributes:
        password: of `ann`, who may make tables in the database `studies`.
    """

    password = "s3/cr@t{x}"

    def __init__(self) -> None:
        programs = postgres_programs()
        assert programs is not None, "installed"
        self._programs, self._port = programs, free_port()
        self._folder = Path(tempfile.mkdtemp(prefix="prunefront-postgres-", dir="/tmp"))
        self._as = {"user": "postgres", "group": "postgres"} if os.geteuid() == 0 else {}
        if self._as:
            shutil.chown(self._folder, "postgres", "postgres")
        self._run("initdb", "-D", str(self._data), "-U", "super", "--auth=trust", "--no-sync")
        rules = "local all super trust\nhost all ann 127.0.0.1/32 scram-sha-256\n"
        subprocess.run(
            ["tee", str(self._data / "pg_hba.conf")], input=rules, text=True, check=True, capture_output=True
        )
        self.start()
        self.query(f"CREATE ROLE ann LOGIN PASSWORD '{self.password}'", "CREATE DATABASE studies OWNER ann")

    @property
    def url(self) -> str:
        """Without a password, which PGPASSWORD holds."""
        return f"postgresql://ann@127.0.0.1:{self._port}/studies"

    @property
    def _data(self) -> Path:
        return self._folder / "data"

    def _run(self, program: str, *arguments: str) -> str:
        ended = subprocess.run(
            [str(self._programs / program), *arguments], cwd=self._folder, capture_output=True, text=True, **self._as
        )
        assert ended.returncode == 0, ended.stdout + ended.stderr
        return ended.stdout

    def start(self) -> None:
        """Start it, and wait until it answers."""
        options = f"-p {self._port} -k {self._folder} -c listen_addresses=127.0.0.1 -c fsync=off"
        self._run("pg_ctl", "-D", str(self._data), "-o", options, "-l", str(self._folder / "log"), "-w", "start")

    def stop(self) -> None:
        """End it at once, in the middle of whatever it does."""
        self._run("pg_ctl", "-D", str(self._data), "-m", "immediate", "-w", "stop")

    def query(self, *statements: str, database: str = "postgres") -> None:
        """Carry out statements as its owner."""
        place = "-h", str(self._folder), "-p", str(self._port), "-U", "super", "-d", database
        for statement in statements:
            self._run("psql", *place, "-c", statement)

    def rows(self, statement: str, database: str) -> list[list[str]]:
        """What a statement finds, as text."""
        place = "-h", str(self._folder), "-p", str(self._port), "-U", "super", "-d", database
        return [line.split("|") for line in self._run("psql", *place, "-At", "-c", statement).splitlines()]

    def remove(self) -> None:
        """End it, if it runs, and delete all that it has."""
        subprocess.run(
            [str(self._programs / "pg_ctl"), "-D", str(self._data), "-m", "immediate", "-w", "stop"],
            cwd=self._folder, capture_output=True, **self._as,
        )  # fmt: skip
        shutil.rmtree(self._folder)


def _wait_for(answers, what: str) -> None:
    end = time.monotonic() + SECONDS
    while not answers():
        assert time.monotonic() < end, f"{what} does not answer"
        time.sleep(0.1)
