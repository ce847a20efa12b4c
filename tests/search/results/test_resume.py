"""The command that resumes a study."""

from __future__ import annotations

from pathlib import Path

from search.config import make_config
from search.results.resume import resume_command


def test_the_resume_command_repeats_what_makes_the_workload():
    config = make_config(workload="./my file.py:make", data="some where", trials=9, root="r")
    command = resume_command(config)
    assert f"--workload '{Path('my file.py').resolve()}:make'" in command
    assert "--data 'some where'" in command and "--root r" in command and "trials" not in command
    assert resume_command(make_config()) == "prunefront search --workload digits"
    own = make_config(criterion="score.py:spread")
    assert resume_command(own, "/my code/score.py:spread").endswith("--criterion '/my code/score.py:spread'")
    assert resume_command(own).endswith("--criterion score.py:spread")
