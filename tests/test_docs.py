"""What the pages in docs/ say is what happens: commands run, programs do what they are printed for, links are whole."""

from __future__ import annotations

import argparse
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from garments_as_cifar import write_garments
from safetensors.torch import save_file
from torch import nn

import pruning
import search
import spaces
from pruning import Calibration, ImportanceScores, apply_masks_, make_mask, to_torch_prune, trace_channels
from search.cli.parser import make_parser
from search.export.manifest import FILES
from search.options import FORMER, MAY_CHANGE, OPTIONS, key_of, study_file
from search.training.own_scores import evaluated
from search.user_code.loading import named_criterion
from search.workloads.checks import check_run
from search.workloads.fashion_mnist import DEBIAN_FOLDER
from spaces.criteria import CRITERIA

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
NEVER_ENDS = {"view"}
SHORTER = ["--trials", "4", "--finalists", "1"]
NARROW = ["--width", "0.0625"]


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / "docs" / page).read_text(), re.S)


def commands(page: str) -> list[list[str]]:
    lines = [line for block in blocks(page, "bash") for line in block.splitlines()]
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("prunefront ")]


@pytest.mark.slow
@pytest.mark.parametrize("page", ["tutorial.md", "labs.md"])
def test_commands_run_from_top_to_bottom(page, main, monkeypatch, tmp_path):
    """Each in a folder with nothing in it but what the page tells to write; searches are shortened, and the labs'
    network is a sixteenth as wide, on garments in CIFAR-10's files.
    """
    monkeypatch.chdir(tmp_path)
    for dictionary in blocks(page, "json"):
        (tmp_path / "sparsity.json").write_text(dictionary)
    if page == "labs.md":
        if not DEBIAN_FOLDER.is_dir():
            pytest.skip("no Fashion-MNIST: install Debian's package dataset-fashion-mnist")
        write_garments(tmp_path / "data", each=120)
    found = [command for command in commands(page) if command[0] not in NEVER_ENDS]
    assert len(found) >= 8
    for command in found:
        done = main(
            *command, *(SHORTER if command[0] == "search" else []), *(NARROW if "cifar10" in command else [])
        )  # fmt: skip
        assert done.code == 0, (command, done.err)
    if page == "labs.md":
        (program,) = blocks(page, "python")
        names: dict[str, object] = {}
        exec(program.replace('data="data"', f'data="data", width={NARROW[1]}'), names)  # noqa: S102
        small = names["networks"]["sorted, first channels"], names["networks"]["fine-tuned"]
        assert [p.shape for p in small[0].parameters()] == [p.shape for p in small[1].parameters()]


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_links_lead_somewhere(path):
    for target in re.findall(r"\]\((?!https?:)([^)]+)\)", path.read_text()):
        place, _, anchor = target.partition("#")
        linked = (path.parent / place) if place else path
        assert linked.exists(), target
        titles = re.findall(r"^#+ (.+)$", linked.read_text(), re.M) if linked.suffix == ".md" else []
        assert not anchor or anchor in {re.sub(r"[^\w -]", "", t).lower().replace(" ", "-") for t in titles}, target


def test_every_page_is_linked_from_the_readme():
    readme = (ROOT / "README.md").read_text()
    measured = (ROOT / "docs" / "benchmarks.md").read_text()
    for path in (ROOT / "docs").glob("*.md"):
        assert f"(docs/{path.name})" in readme or f"({path.name})" in measured, path.name


@pytest.mark.parametrize("package", [spaces, pruning, search], ids=lambda package: package.__name__)
def test_the_python_reference_names_what_is_public(package):
    page = (ROOT / "docs" / "python.md").read_text()
    section = re.split(r"^## ", page, flags=re.M)
    section = next(text for text in section if text.startswith(package.__name__))
    assert [name for name in package.__all__ if not re.search(rf"\b{name}\b", section)] == []


CONCEPTS, FORMATS = ((ROOT / "docs" / page).read_text() for page in ("concepts.md", "formats.md"))
RESUMED = next(line for line in CONCEPTS.splitlines() if line.startswith("| a resumed study"))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (CONCEPTS, CRITERIA),
        (CONCEPTS, OPTIONS["sampler"].kinds),
        (RESUMED, [f"--{key_of(name)}" for name in MAY_CHANGE]),
        (FORMATS, FILES),
    ],
    ids=["criteria", "samplers", "options that may change", "files of an export"],
)
def test_pages_name_all_there_are(text, words):
    assert [word for word in words if f"`{word}`" not in text and f"--sampler {word}`" not in text] == []


def test_policies_are_written_as_printed():
    exec(next(block for block in blocks("python.md", "python") if "removed_count" in block), {})  # noqa: S102


def test_a_loop_of_ones_own_has_every_split_that_it_asks_for():
    """With stand-ins for what the page calls the reader's own."""
    splits = {name: (torch.rand(8, 6), torch.arange(8) % 3) for name in ("fit", "calibration", "validation", "test")}
    names: dict[str, Any] = {"criterion": nn.functional.cross_entropy, "images": torch.rand(2, 6), **splits}
    names |= {"Detector": lambda: nn.Linear(6, 3), "mean_average_precision": lambda model, batches: len(list(batches))}
    exec(next(b for b in blocks("python.md", "python") if "mean_average_precision" in b), names)  # noqa: S102
    workload = names["workload"]
    for split in ("calibration", "validation", "test"):
        assert evaluated(nn.Linear(6, 3), split, workload) == (1, 0.25)
    check_run(workload, nn.Linear(6, 3))


def test_criteria_of_ones_own_are_taken_as_printed(tmp_path):
    """The oracle of the second is the gradient of the mean loss: its batches are equally large."""
    (tmp_path / "scores.py").write_text(next(b for b in blocks("python.md", "python") if "calibration.batches" in b))
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3)).eval()
    images, labels = torch.randn(64, 1, 4, 4), torch.arange(64) % 3
    spread, sensitivity = (named_criterion(f"{tmp_path}/scores.py:{name}") for name in ("spread", "sensitivity"))
    assert make_mask(torch.tensor([[3.0, 0.125, 1.0, 0.5]]), 0.25, criterion=spread).tolist() == [
        [True, True, False, True]
    ]
    graph = trace_channels(model, images[:2])
    scores = ImportanceScores(model, sensitivity, graph, Calibration(images, labels))
    mask = make_mask(model[4].weight, 0.75, criterion=sensitivity, scores=scores.elements("4.weight", "fine-grained"))
    (found,) = torch.autograd.grad(nn.functional.cross_entropy(model(images), labels), [model[4].weight])
    least = (found * model[4].weight).abs().flatten().argsort()[:36]
    assert not mask.flatten()[least].any() and int(mask.sum()) == 12


def test_rounded_weights_are_written_and_read_as_printed(tmp_path, monkeypatch):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)).eval()
    monkeypatch.chdir(tmp_path)
    names = {"model": model}
    exec(next(b for b in blocks("python.md", "python") if "read_sparse" in b), names)  # noqa: S102
    images = torch.randn(2, 16)
    assert torch.equal(model(images), names["small"](images))
    assert int((model[0].weight == 0).sum()) >= 96


def test_plain_pytorch_restores_masks_as_printed(tmp_path, monkeypatch):
    def network() -> nn.Module:
        return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 3)).eval()

    source, images = network(), torch.randn(2, 1, 4, 4)
    masks = {name: make_mask(source.get_parameter(name), 0.25) for name in ("0.weight", "3.weight", "3.bias")}
    (tmp_path / "best").mkdir()
    save_file(to_torch_prune(source, masks).state_dict(), tmp_path / "best" / "model.torch-prune.safetensors")
    apply_masks_(source, masks)
    monkeypatch.chdir(tmp_path)
    restored = network()
    exec(next(b for b in blocks("python.md", "python") if "prune.identity" in b), {"model": restored})  # noqa: S102
    assert torch.equal(restored(images), source(images))
    assert restored.state_dict().keys() >= {"0.weight_orig", "3.weight_orig", "3.bias_orig", "0.bias"}


def test_every_module_stands_in_the_design():
    tree = (ROOT / "docs" / "design.md").read_text()
    for package in ("spaces", "pruning", "search"):
        assert [path.name for path in (ROOT / package).glob("[a-z]*.py") if f"`{path.name}`" not in tree] == []
        assert [str(path) for path in (ROOT / package).glob("*/[a-z]*.py") if f"`{path.stem}`" not in tree] == []


EVERYWHERE = ("help", "root", "json", "debug")
"""Options that the page's first table has."""


def table_of(parser: argparse.ArgumentParser) -> str:
    """What the command line takes, as the page has it: the help, and what else the options' table knows of it."""
    rows = ["| argument | meaning |", "|---|---|"]
    for action in parser._actions:
        if action.dest in EVERYWHERE or action.help == argparse.SUPPRESS:
            continue
        value = action.metavar or ("{" + ",".join(action.choices) + "}" if action.choices else "")
        names = ", ".join(f"{name} {value}".strip() for name in action.option_strings) or value
        known = OPTIONS.get(action.dest)
        more = f"; {known.more}" if known and known.more and action.help == known.help_line else ""
        rows.append(f"| `{names}` | {action.help}{more} |")
    return "\n".join(rows) + "\n"


def test_the_command_line_reference_is_what_the_parser_takes():
    page = (ROOT / "docs" / "command-line.md").read_text()
    sections = {text.split("\n", 1)[0]: text for text in re.split(r"^## ", page, flags=re.M)}
    (commands,) = (action.choices for action in make_parser()._actions if isinstance(action.choices, dict))
    for name, parser in commands.items():
        table = table_of(parser)
        assert table in sections[name], f"paste this into docs/command-line.md, {name}:\n\n{table}"
    example = f"```toml\n{study_file()}```"
    assert example in sections["search"], f"paste this into docs/command-line.md, search:\n\n{example}"
    for former, present in FORMER.items():
        assert f"`--{key_of(former)}` is now `--{key_of(present)}`" in " ".join(sections["search"].split())
