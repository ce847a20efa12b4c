"""What `doctor` says of a machine that lacks something, and of one that does not."""

from __future__ import annotations

import json
import socket
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib.metadata import PackageNotFoundError, version

import pytest

from search.cli.commands import doctor
from search.cli.commands.doctor import Finding


@pytest.fixture
def asked(main, monkeypatch, tmp_path):
    """`doctor --json` on a new root in an environment that names no server."""
    for name in ("MLFLOW_TRACKING_URI", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)

    def ask(root=tmp_path / "root", code=0) -> dict[str, dict]:
        done = main("doctor", "--json", "--root", root)
        assert done.code == code, done.err
        reply = json.loads(done.out)
        assert reply["ready"] == (code == 0) and "s3cret" not in done.out + done.err
        found = {one["name"]: one for one in reply["findings"]}
        assert reply["lacking"] == [name for name, one in found.items() if one["state"] == "lacks"]
        assert all(one["remedy"] or one["state"] == "ok" or one["detail"] for one in found.values())
        return found

    return ask


@contextmanager
def server(status: int):
    class Answer(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(status if self.path == "/health" else 404)
            self.end_headers()

        def log_message(self, *_):
            pass

    with HTTPServer(("127.0.0.1", 0), Answer) as one:
        thread = threading.Thread(target=one.serve_forever, args=(0.01,))
        thread.start()
        yield one.server_port
        one.shutdown()
        thread.join()


def closed_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def test_a_machine_that_has_all_is_ready_and_unchanged(asked, tmp_path):
    found = asked()
    assert found["torch"]["detail"] == version("torch") and found["python"]["state"] == "ok"
    assert "fp32" in found["cpu"]["detail"] and "GiB" in found["cpu"]["detail"] and found["digits"]["state"] == "ok"
    assert found["folder"]["detail"].endswith("can be made") and found["studies"]["detail"] == "0"
    assert list(tmp_path.iterdir()) == []


def test_studies_and_the_database_of_a_root_are_told(asked, finished):
    found = asked(finished.root)
    assert found["studies"]["detail"] == "1" and found["MLflow's database"]["detail"].endswith("mlflow.db")


@pytest.mark.parametrize("status", [200, 401])
def test_a_server_that_answers_is_reached_and_its_password_masked(asked, monkeypatch, status):
    with server(status) as port:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://ann:s3cret@127.0.0.1:{port}")
        found = asked()["MLflow's server"]
    assert (found["state"], found["detail"]) == ("ok", f"http://ann:***@127.0.0.1:{port} answers")


def test_servers_that_do_not_answer_are_no_hindrance(asked, monkeypatch):
    monkeypatch.setattr(doctor, "_installed", lambda name: "1.0")
    port = closed_port()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://ann:s3cret@127.0.0.1:{port}")
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{port}")
    found = asked()
    for name in ("MLflow's server", "Ray cluster"):
        assert found[name]["state"] == "absent" and "cannot be reached" in found[name]["detail"]
    with socket.create_server(("127.0.0.1", 0)) as listener:
        monkeypatch.setenv("RAY_ADDRESS", f"ray://127.0.0.1:{listener.getsockname()[1]}")
        assert asked()["Ray cluster"]["state"] == "ok"


def test_an_address_that_is_none_is_what_a_search_refuses(asked, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://")
    found = asked(code=3)
    assert [name for name, one in found.items() if one["state"] == "lacks"] == ["MLflow's server"]


def test_packages_that_lack_are_needed_or_extras(asked, monkeypatch):
    def without(name: str) -> str:
        if name in ("scipy", "onnx"):
            raise PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(doctor, "version", without)
    found = asked(code=3)
    assert [found[name]["state"] for name in ("scipy", "onnx", "torch")] == ["lacks", "absent", "ok"]
    assert found["onnx"]["remedy"] == "pip install 'prunefront[onnx]' to use it"


def test_a_root_that_cannot_be_written_and_a_broken_database(asked, tmp_path):
    (tmp_path / "file").write_text("")
    assert asked(tmp_path / "file", code=3)["folder"]["state"] == "lacks"
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "mlflow.db").write_bytes(b"no database" * 1000)
    assert asked()["MLflow's database"]["state"] == "absent"


def test_a_line_tells_state_detail_and_remedy():
    line = doctor._line(Finding("Stores", "a store", "ok", "its detail", "a remedy"))
    assert line == "  ok      a store: its detail; a remedy"
