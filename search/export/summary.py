"""An export in a few lines, for a person."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from search.export.rebuild import Export
from search.metric import Metric, metric_from_plain
from search.wrapping import NOTEBOOK, wrapped
from spaces.printable import printable
from spaces.wording import counted, percent


class ShownManifest(dict[str, Any]):
    """An export's manifest, which shows a few lines of what it says in place of all of it."""

    def __init__(self, manifest: Mapping[str, Any], shown: str) -> None:
        super().__init__(manifest)
        self._shown = shown

    def __repr__(self) -> str:
        return wrapped(printable(self._shown, lines=True), NOTEBOOK)


def summary(out: Path, manifest: Mapping[str, Any], made: Export, name: str = "", runs: int = 0) -> str:
    """Accuracies, sizes and files of an export in the folder `out`; `name` is what was chosen of a study, the median of
    so many full-length `runs`.
    """
    size = f"{manifest['sparse_bytes']:,} of {manifest['dense_bytes']:,} bytes"
    policy, file, seed = made.policy, made.result.file, made.origin.get("seed")
    unit = metric_from_plain(manifest.get("metric"))
    test, bits = unit.shown(manifest["test_accuracy"]), f", {policy.bits_label}" if policy.is_rounded else ""
    median = f", the {'lower' if runs == 2 else 'median'} of {runs} by validation" if runs > 1 else ""
    which = f"{name}{'' if seed is None else f', seed {seed}{median}'}: " if name else ""
    zeroed = (
        f"{counted(file.given_up, 'small value')} set to 0 to fit its predicted bytes\n"
        if file and file.given_up
        else ""
    )
    return (
        f"{out}: {which}validation {unit.name} {unit.shown(manifest['accuracy'])}"
        + (f", test {test}" if test else "")
        + f", {size} = {percent(manifest['size_encoded'], 2)}{bits}, MACs {percent(manifest['macs'])}\n"
        f"{zeroed}{_int8_line(manifest, unit)}"
        f"Files: {', '.join(_sized(manifest['files']))}, manifest.json"
    )


def _int8_line(manifest: Mapping[str, Any], unit: Metric) -> str:
    """What the file of 8-bit integers is worth beside the network it was made of; nothing where there is none."""
    if "int8" not in manifest:
        return ""
    found, floats = manifest["int8"], manifest["accuracy"]
    change = "worse" if found["accuracy"] < floats else "better"
    apart = f"{unit.distance(found['accuracy'], floats)} {change}" if found["accuracy"] != floats else "the same"
    new = len(found["weights_rounded_anew"])
    return (
        f"In 8 bits by ONNX Runtime: {unit.name} {unit.shown(found['accuracy'])}, {apart}; outputs differ by up to "
        f"{100 * found['output_difference']:.2f} % of the largest"
        + (f"; rounded anew: {counted(new, 'weight')}" if new and found["weights_as_in_policy"] else "")
        + "\n"
    )


def _sized(files: Mapping[str, Mapping[str, Any]]) -> list[str]:
    return [f"{name} ({described['bytes']:,} bytes)" for name, described in files.items()]
