"""STUDY.toml: what the help prints of it, and what it says that the flags do not."""

from __future__ import annotations

import re

from replies import one_line_error

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
