"""What is said of a command that ends in an error that was expected."""

from __future__ import annotations


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
