"""Who follows a study in a test: one keeps what is said, one interrupts."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

from search.progress import ProgressReporter


class Notes(ProgressReporter):
    """Keeps the notes, the headlines and the labels of the stages, each in its order."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.headlines: list[str] = []
        self.labels: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)

    def headline(self, text: str) -> None:
        self.headlines.append(text)

    def stage(self, label: str) -> AbstractContextManager[Callable[[int, int], None]]:
        self.labels.append(label)
        return super().stage(label)


class Interrupt(ProgressReporter):
    """Ctrl-C after some trials, or in the middle of one."""

    def __init__(self, after: int | None = None, within: int | None = None) -> None:
        self.after, self.within, self.shown, self.asked = after, within, 0, []

    def headline(self, text):
        self.shown += 1
        if self.shown == self.after:
            raise KeyboardInterrupt

    def stage(self, label):
        if label.startswith("trial"):
            self.asked.append(label)
        return _Stage(label.startswith(f"trial {self.within} "))


class _Stage:
    def __init__(self, stops: bool) -> None:
        self.stops = stops

    def __enter__(self):
        return self.step

    def __exit__(self, *_):
        return None

    def step(self, done, total):
        if self.stops and done == 5:
            raise KeyboardInterrupt
