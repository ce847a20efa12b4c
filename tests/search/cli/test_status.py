"""`status`; and that it and `front` change nothing of what they read."""

from __future__ import annotations

import json


def test_status_counts_and_names_the_best(main, finished):
    reply = json.loads(main("status", "tiny", "--json").out)
    assert reply["trials"] == finished.reply["trials"] and reply["asked"] == 8
    assert reply["best"]["trial"] == finished.reply["best"] and reply["running"] is False
    text = main("status", "tiny").out
    assert "8 complete of 8 asked" in text and f"trial {finished.reply['best']}" in text and "Resume" not in text


def test_reading_a_study_changes_nothing_of_it(main, finished):
    def content():
        return {
            path: path.read_bytes() for path in finished.path.rglob("*") if path.is_file() and "lock" not in path.name
        }

    before = content()
    for words in (["front", "tiny"], ["status", "tiny"], ["front", "tiny", "--all"]):
        assert main(*words).code == 0
    assert content() == before
