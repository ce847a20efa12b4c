"""`report`: its page lies beside the study."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from replies import one_line_error


def test_a_report_is_a_page_beside_the_study_and_changes_nothing_of_it(main, finished, tmp_path):
    """Of a copy, whose report lies in its own folder; the lines on stdout are the words of the page."""

    def content():
        files = (path for path in (tmp_path / "tiny").rglob("*") if path.is_file() and path.parent.name != "report")
        return {path: path.read_bytes() for path in files}

    shutil.copytree(finished.path, tmp_path / "tiny")
    before = content()
    done = main("report", "tiny", "--root", tmp_path, "--json")
    assert done.code == 0 and content() == before
    reply = json.loads(done.out)
    assert reply["report"] == str(tmp_path / "tiny" / "report" / "report.html")
    names = sorted(path.name for path in (tmp_path / "tiny" / "report").iterdir())
    assert names == sorted(Path(path).name for path in (reply["report"], *reply["pictures"])) and len(names) == 6
    assert reply["words"]["recommendations"][0]["trial"] == finished.reply["best"]
    page = Path(reply["report"]).read_text()
    assert page.startswith("<!doctype html>")
    (tmp_path / "file").touch()
    one_line_error(main("report", "tiny", "--out", tmp_path / "file" / "below"), 2, "name a folder")
