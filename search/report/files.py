"""A report as files: the page and its pictures, in a folder."""

from __future__ import annotations

from pathlib import Path

from search.files import write_durably
from search.report.page import Report

PAGE = "report.html"


def write_report(folder: Path, report: Report) -> list[str]:
    """Write the pictures, then the page, which needs none of them; returns all paths, the page's first.

    Raises:
        EnvironmentProblem: the folder cannot be written.
    """
    for picture in report.pictures:
        write_durably(folder / f"{picture.name}.png", picture.png)
    write_durably(folder / PAGE, report.html.encode())
    return [str(folder / PAGE), *(str(folder / f"{picture.name}.png") for picture in report.pictures)]
