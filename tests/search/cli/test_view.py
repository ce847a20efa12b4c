"""`view`: MLflow's page on this machine only, and no server that outlives the command."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

import pytest
from replies import one_line_error

from search.cli.mlflow_ui import serve_ui
from search.errors import EnvironmentProblem


@pytest.mark.slow
def test_view_answers_on_this_machine_only(program, place, finished):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = subprocess.Popen(
        [program, "view", "--port", str(port), "--json"], cwd=place, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, start_new_session=True,
    )  # fmt: skip
    try:
        reply = json.loads(server.stdout.readline())
        assert reply["url"] == f"http://127.0.0.1:{port}" and "127.0.0.1" in reply["command"]
        assert _answers(reply["url"], server) == 200
        listening = Path("/proc/net/tcp").read_text().splitlines()[1:]
        hosts = {row.split()[1].split(":")[0] for row in listening if int(row.split()[1].split(":")[1], 16) == port}
        assert hosts == {"0100007F"}
        server.send_signal(signal.SIGINT)
        out, err = server.communicate(timeout=30)
        assert server.returncode == 130 and out == ""
        assert err.splitlines()[-1] == "prunefront: interrupted" and "Traceback" not in err
        listening = Path("/proc/net/tcp").read_text().splitlines()[1:]
        assert not [
            row for row in listening if int(row.split()[1].split(":")[1], 16) == port and row.split()[3] == "0A"
        ]
    finally:
        if server.poll() is None:
            server.terminate()
            server.wait(20)


@pytest.mark.parametrize(
    ("number", "code", "word"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
)
def test_a_stopped_view_says_one_line_and_leaves_no_server(main, monkeypatch, tmp_path, number, code, word):
    """By a server that is up at once in MLflow's place."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    monkeypatch.setattr("search.cli.commands.study.open_store", lambda *_: None)
    monkeypatch.setattr("search.cli.mlflow_ui.ui_command", lambda *_: ["http.server", str(port), "--bind", "127.0.0.1"])

    def stop_once_it_answers() -> None:
        while not _is_open(port):
            time.sleep(0.05)
        os.kill(os.getpid(), number)

    threading.Thread(target=stop_once_it_answers, daemon=True).start()
    reply = main("view", "--root", tmp_path, "--port", port, "--json")
    assert reply.code == code and json.loads(reply.out)["url"].endswith(str(port))
    assert reply.err.splitlines()[-1] == f"prunefront: {word}" and "Traceback" not in reply.err
    assert not _is_open(port)


def test_a_killed_view_leaves_no_server(tmp_path):
    """Neither the server nor what that started, which ignores being asked to end."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    (tmp_path / "stubborn.py").write_text(
        "import os, runpy, signal, sys\n"
        "if os.fork() == 0:\n"
        "    signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "    sys.argv = ['http.server', sys.argv[1], '--bind', '127.0.0.1']\n"
        "    runpy.run_module('http.server', run_name='__main__')\n"
        "signal.pause()\n"
    )
    code = (
        "import sys\nfrom pathlib import Path\nimport search.cli.mlflow_ui as ui\nsys.path.append('.')\n"
        "ui.ui_command = lambda *_: ['stubborn', sys.argv[1]]\nui.serve_ui(Path('.'), 0)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([*filter(None, sys.path), str(tmp_path)])}
    viewer = subprocess.Popen([sys.executable, "-c", code, str(port)], cwd=tmp_path, env=environment)
    try:
        assert _becomes(port, True)
    finally:
        viewer.kill()
        viewer.wait()
    assert _becomes(port, False)


def _becomes(port: int, is_open: bool) -> bool:
    for _ in range(600):
        if _is_open(port) == is_open:
            return True
        time.sleep(0.1)
    return False


def _is_open(port: int) -> bool:
    with socket.socket() as caller:
        return caller.connect_ex(("127.0.0.1", port)) == 0


def test_a_server_that_ends_by_itself_is_an_environment_problem(monkeypatch, tmp_path):
    monkeypatch.setattr("search.cli.mlflow_ui.ui_command", lambda *_: ["http.server", "--no-such-option"])
    with pytest.raises(EnvironmentProblem, match="ended with code 2"):
        serve_ui(tmp_path, 5000)


def _answers(url: str, server: subprocess.Popen) -> int | None:
    for _ in range(240):
        try:
            with urllib.request.urlopen(url, timeout=5) as page:
                return page.status
        except OSError:
            assert server.poll() is None, "the server ended"
            time.sleep(0.5)
    return None


def test_a_port_in_use_is_an_environment_problem(main, finished):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        one_line_error(main("view", "--port", taken.getsockname()[1]), 3, "--port")
