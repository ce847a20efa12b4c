"""The points of a scan, written to disk as they are found, so that an interrupted scan continues where it stopped."""

from __future__ import annotations

import json
import math
import os
import time
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any

from pruning.analysis.sensitivity_scan import ROUNDING, Point, PointKey
from search.files import flush, read_bytes
from search.storage import set_aside
from spaces.bits import BITS
from spaces.sensitivity import ProfilePoint, RoundingPoint
from spaces.strict_json import nan_as_null
from spaces.validation import is_number

FLUSH_SECONDS = 5.0
"""If the machine fails, the points of the last so many seconds are lost; if only the process fails, none are."""
MOST_BYTES = 2**30
"""Of the file: four million points."""


class KeptPoints:
    """The points of one scan, in a file of JSON lines beside its profile. Lines that are not points are skipped.

    Use it as a context manager. Two processes that run the same scan may share the file.

    Attributes:
        known: points found in the file or added since.
        seconds: how long earlier processes scanned.
    """

    def __init__(self, profile: Path) -> None:
        self._path = profile.with_suffix(".points.jsonl")
        self.known: dict[PointKey, Point] = {}
        self.seconds = 0.0
        is_file = self._path.is_file() and not self._path.is_symlink()
        content = read_bytes(self._path, MOST_BYTES) if is_file else b""
        for line in content.split(b"\n"):
            self._read(line)
        self._begins_in_a_line = bool(content) and not content.endswith(b"\n")
        self._began = self._flushed = time.perf_counter()

    def __enter__(self) -> KeptPoints:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        if self._path.is_symlink() or (self._path.exists() and not self._path.is_file()):
            set_aside(self._path)  # a pipe would wait for a reader, a link would add to somebody's file
        self._file = self._path.open("ab", buffering=0)
        if self._begins_in_a_line:
            self._file.write(b"\n")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._file.close()

    def keep(self, key: PointKey, point: Point) -> None:
        """Add a point of `scan_sensitivity`."""
        self.known[key] = point
        now = time.perf_counter()
        granularity, layer, level = key
        line = {"granularity": granularity, "layer": layer, "level": level, "point": nan_as_null(asdict(point))}
        line["seconds"] = self.seconds + now - self._began
        self._file.write((json.dumps(line, allow_nan=False) + "\n").encode())
        if now - self._flushed > FLUSH_SECONDS:
            os.fsync(self._file.fileno())
            self._flushed = now

    def drop(self) -> None:
        """Remove the file: the profile is written and holds all points."""
        self._path.unlink(missing_ok=True)
        flush(self._path.parent)

    def _read(self, line: bytes) -> None:
        try:
            data: dict[str, Any] = json.loads(line)
            key = (data["granularity"], data["layer"], data["level"])
            values: dict[str, Any] = {
                name: math.nan if value is None else value for name, value in data["point"].items()
            }
            point: Point = RoundingPoint(**values) if key[0] == ROUNDING else ProfilePoint(**values)
            seconds = data["seconds"]
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            return
        numbers = [value for value in values.values() if value is not math.nan]
        if not all(map(is_number, [*numbers, key[2], seconds])) or seconds < 0:
            return
        if isinstance(point, ProfilePoint) and not 0 <= point.sparsity <= 1:
            return
        if isinstance(point, RoundingPoint) and (point.bits != key[2] or point.bits not in BITS[1:]):
            return
        if isinstance(key[0], str) and isinstance(key[1], str):
            self.known[key] = point
            self.seconds = max(self.seconds, seconds)
