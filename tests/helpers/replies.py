"""What is said of a command that ends in an error that was expected."""

from __future__ import annotations

import json
import re


def one_line_error(reply, code: int, *said: str) -> None:
    """An expected error: its exit code, one line on stderr that says all of `said`, nothing on stdout."""
    err, out = (reply.err, reply.out) if hasattr(reply, "err") else (reply.stderr, reply.stdout)
    found = reply.code if hasattr(reply, "code") else reply.returncode
    assert found == code, err
    lines = [line for line in err.splitlines() if line.startswith("prunefront: ")]
    assert len(lines) == 1 and err.splitlines()[-1] == lines[0], err
    assert "Traceback" not in err and "unexpected" not in lines[0], err
    for words in said:
        assert words in lines[0], f"{words!r} not in {lines[0]!r}"
    assert out == ""


def one_line(reply, said: str, code: int = 2) -> None:
    """The exit code, one line on stderr, and nothing on stdout but, with `--json`, one object that says the same."""
    lines = [line for line in reply.err.splitlines() if line.startswith("prunefront: ")]
    assert len(lines) == 1 and reply.err.splitlines()[-1] == lines[0], reply.err
    assert reply.code == code and said in lines[0] and "unexpected" not in lines[0], reply.err
    assert not re.search("Traceback|pydantic|Input should", reply.err)
    if reply.out:
        assert json.loads(reply.out) == {"error": lines[0].removeprefix("prunefront: "), "exit_code": code}
        assert reply.out.count("\n") == 1
