"""The folder of an export: replaced as a whole or not at all."""

from __future__ import annotations

import os
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from search.errors import EnvironmentProblem, PrunefrontError, UsageError
from search.export.manifest import FILES, MANIFEST, foreign_file
from search.files import check_writable, flush, unwritable
from search.store.locks import folder_is_held, held_folder


def check_folder(out: Path) -> None:
    """Refuse a folder that an export cannot be written to, before anything is computed.

    A folder that holds nothing but an earlier export will be replaced as a whole; other files are never touched. A link
    stands for the folder that it points to.

    Raises:
        UsageError: it is a file or lies below one, or it holds files that belong to no export.
        EnvironmentProblem: it cannot be written, or cannot be replaced as a whole.
    """
    check_writable(out)
    if obstacle := _obstacle(_place(out)):
        raise EnvironmentProblem(
            f"an export replaces its folder, and --out {str(out)!r} cannot be replaced ({obstacle}): "
            f"name a folder in it, such as {str(out / 'export')!r}"
        )
    if out.is_dir() and (foreign := foreign_file(out)) is not None:
        raise UsageError(
            f"--out {str(out)!r} holds {foreign!r}, which is not part of an export, or has been changed since: "
            "name a new or empty folder"
        )


def _place(out: Path) -> Path:
    """The folder that `out` links to, whether it exists or not; `out` itself if it is no link."""
    return Path(os.path.realpath(out))


def _obstacle(place: Path) -> str | None:
    """Why a folder cannot be renamed; None if it can be or does not exist yet."""
    if not place.is_dir():
        return None
    if os.path.ismount(place):
        return "it is a mount point"
    if os.path.samefile(place, os.curdir):
        return "this command runs in it"
    reason = unwritable(place.parent)
    return f"its parent {str(place.parent)!r} cannot be written: {reason}" if reason else None


@contextmanager
def filled_whole(out: Path) -> Iterator[Path]:
    """A new folder beside `out` that replaces it once everything is written.

    If `out` cannot be replaced, the new folder is kept next to it and named in the error.
    """
    place = _place(out)
    _remove_abandoned(place.parent)
    partial = place.parent / f".export-{uuid.uuid4().hex[:8]}.partial"
    try:
        with _new_folder(partial), held_folder(partial):
            yield partial
    except OSError as error:
        raise EnvironmentProblem(f"cannot write to {str(out)!r}: {error.strerror or error}") from None
    earlier = partial.with_suffix(".replaced")
    try:
        check_folder(out)  # again: files may have come while it was computed
        _replace(place, partial, earlier)
    except (OSError, PrunefrontError) as error:
        reason = f"cannot replace {str(out)!r}: {error.strerror or error}" if isinstance(error, OSError) else error
        kept = f", the earlier one in {str(earlier)!r}" if earlier.is_dir() else ""
        with suppress(OSError):  # a later export takes a '.partial' folder for one that was killed
            partial = partial.rename(partial.with_suffix(".complete"))
        raise EnvironmentProblem(f"{reason}; the new export is complete in {str(partial)!r}{kept}") from None


def _remove_abandoned(parent: Path) -> None:
    """Remove what killed exports left. If one was killed between its two renames, both of its folders are complete and
    stay.
    """
    for path in parent.glob(".export-*.partial"):
        ours = re.fullmatch(r"\.export-[0-9a-f]{8}\.partial", path.name) and not path.is_symlink()
        if ours and not path.with_suffix(".replaced").exists() and not folder_is_held(path):
            shutil.rmtree(path, ignore_errors=True)


@contextmanager
def _new_folder(path: Path) -> Iterator[None]:
    """Make the folder, and remove it again if the work on it fails."""
    try:
        path.mkdir(parents=True)
        yield
    except BaseException:
        shutil.rmtree(path, ignore_errors=True)
        raise


def _replace(place: Path, new: Path, earlier: Path) -> None:
    """Rename `new` to `place`. What was there is first renamed to `earlier`, and removed once `new` is in place.

    After a crash between the two renames, both are complete: `.export-*.replaced` and `.export-*.partial` beside
    `place`.
    """
    for path in new.iterdir():
        flush(path)
    try:
        if place.is_dir():
            place.rename(earlier)
        new.rename(place)
    except BaseException:
        if earlier.is_dir() and not place.exists():
            earlier.rename(place)
        raise
    with suppress(OSError):  # files of others that came meanwhile are kept, with the folder
        for name in (*FILES, MANIFEST):
            (earlier / name).unlink(missing_ok=True)
        earlier.rmdir()
