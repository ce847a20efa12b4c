"""STUDY.toml: what the help prints of it, what it says that the flags do not, and what is refused."""

from __future__ import annotations

import os
import re

import pytest
from refusals import table
from replies import one_line, one_line_error

from search.config import SearchConfig, make_config, read_study_file
from search.options import study_file


def test_help_prints_a_study_file_of_every_key_at_its_default(run, tmp_path):
    shown = run("search", "--help").stdout
    assert "".join(f"  {line}\n" for line in study_file().splitlines()) in shown
    file = tmp_path / "study.toml"
    file.write_text(study_file())
    given, plain = make_config(**read_study_file(file)), SearchConfig()
    assert given == plain
    file.write_text(re.sub(r"^# (\S+ =)", r"\1", study_file(), flags=re.M))
    options = read_study_file(file)
    assert options.keys() == SearchConfig.model_fields.keys()
    optional = {key for key, value in plain if value is None}
    for others in ({"weights", "min_accuracy"}, {"pretrained", "min_score"}):  # of each pair one is taken
        config = make_config(**{key: value for key, value in options.items() if key not in others})
        assert {key for key, value in config if value != getattr(plain, key)} == optional - others


def test_a_study_file_says_what_the_flags_do_not(main, tmp_path):
    file = tmp_path / "study.toml"
    file.write_text(f'root = "{tmp_path / "root"}"\nmax-size = 0.01\nworkload = "./tiny.py:tiny"\n')
    one_line_error(main("search", file), 2, "0.01", "cannot be reached")
    one_line_error(main("search", "--max-size", 0.02, file), 2, "0.02", "cannot be reached")


TINY = ("--workload", "./tiny.py:tiny")
STUDY_FILES = {
    "key": ("max-sise = 0.3", "unknown key 'max-sise': did you mean 'max-size'"),
    "key with _": ("max_sise = 0.3", "unknown key 'max_sise': did you mean 'max-size'"),
    "both spellings": ("max-size = 0.3\nmax_size = 0.2", "key 'max-size' is given twice"),
    "twice": ("trials = 3\ntrials = 4", "not valid TOML"),
    "section": ("[search]\ntrials = 3", "unknown key 'search'"),
    "true trials": ("trials = true", "trials must be a whole number, >= 1, got true"),
    "true width": ("width = true", "width must be a number, > 0, got true"),
    "false study": ("study = false", "study must be text, got false"),
    "digits": ("trials = " + "9" * 5000, "not valid TOML: Exceeds the limit (4300 digits)"),
    "nested": ("a = " + "[" * 5000, "nested too deeply"),
    "nul": ('root = "a\\u0000"', "root holds a NUL character, got 'a\\x00'"),
    "not text": ("\udcff", "it is not a text file in UTF-8"),
    "date": ("trials = 1979-05-27", "trials must be a whole number, >= 1, got datetime.date(1979, 5, 27)"),
    "infinite": ("max-size = 1e999", "got inf"),
    "escapes": ('study = "\\u001b[2K"', r"got '\x1b[2K'"),
}


@table(STUDY_FILES)
def test_a_study_file_is_refused_at_once(main, tmp_path, case):
    content, said = case
    (tmp_path / "study.toml").write_bytes(content.encode("utf-8", "surrogateescape"))
    one_line(main("search", tmp_path / "study.toml"), said)


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_what_is_no_file_is_not_waited_for(main, tmp_path, make):
    make(tmp_path / "pipe")
    for words in (["search", tmp_path / "pipe"], ["apply", tmp_path / "pipe", *TINY, "--out", tmp_path / "out"]):
        reply = main(*words)
        one_line(reply, "it is a folder, pipe or device, not a file")
