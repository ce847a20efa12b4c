"""Every primitive with the law or oracle it is held to, the test that holds it, and what that test says now.

    python tests/benchmarks/primitive_table.py show [--part granularity] [--output tests/benchmarks/primitives.md]

Runs the tests named here, in one process, and prints the table in Markdown, then one JSON line; exits with 1 if one
of them does not pass. Every granularity, criterion, allocator, schedule and training the code knows has a row.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from xml.etree import ElementTree

from study import hardware

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Primitive:
    """A row.

    Attributes:
        part: what it is one of.
        name: the word the code knows it by, or a short phrase.
        law: what it is held to.
        test: the test, from `tests/` on, as pytest names it.
        case: text in the parameters of the cases that count; of a test without parameters, or for all cases, empty.
    """

    part: str
    name: str
    law: str
    test: str
    case: str = ""

    @property
    def command(self) -> str:
        """What runs it alone."""
        return f"pytest tests/{self.test}" + (f" -k {self.case}" if self.case else "")


MASKS, RUNS = "pruning/test_masks.py::TestAgainstPyTorch::", "pruning/test_units.py::"
SCORES, GRADIENTS = "pruning/importance/test_scores.py::", "pruning/importance/test_gradients.py::"
EXACT, TORCH = "spaces/allocation/test_allocators.py::TestExactly::", "pruning/test_torch_prune.py::"
SUMS = f"{RUNS}test_runs_are_scored_by_their_sum_and_expanded_to_their_elements"
PLACES = f"{RUNS}test_patterns_keep_the_highest_of_every_block"
FIXED = f"{RUNS}test_fixed_patterns_remove_all_they_can_or_nothing"
FRESH = "search/training/test_train.py::test_fresh_weights_for_equal_epochs_or_compute"
LABS = "spaces/cost/test_footprint.py::TestLabNumbers::"

PRIMITIVES = tuple(
    Primitive(part, *row)
    for part, rows in {
        "granularity": [
            ("fine-grained", "a sort of (score, index) pairs", "pruning/test_masks.py::TestCounts::"
             "test_exact_with_many_ties"),
            ("vector", "a loop over single weights", SUMS, "vector"),
            ("kernel", "a loop over single weights", SUMS, "kernel"),
            ("channel", "`ln_structured` of PyTorch", f"{MASKS}test_channel_is_ln_structured"),
            ("1:4", "3 of every 4 go or none, by counting", FIXED, "1:4"),
            ("2:4", "2 of every 4 go or none, by counting", FIXED, "2:4"),
            ("*:4", "a sort of every block by hand", PLACES),
            ("*:8", "a sort of every block by hand", PLACES),
        ],
        "criterion": [
            ("magnitude-l1", "`ln_structured` with n = 1", f"{MASKS}test_channel_is_ln_structured", "1-magnitude-l1"),
            ("magnitude-l2", "`ln_structured` with n = 2", f"{MASKS}test_channel_is_ln_structured", "2-magnitude-l2"),
            ("random", "PyTorch's random methods given the same numbers", "pruning/test_pytorch_equality.py::"
             "TestOneLayer::test_random_methods_with_the_same_numbers"),
            ("lamp", "its definition, a double sum", f"{SCORES}TestLamp::test_by_the_definition"),
            ("fpgm", "sums of pairwise distances", f"{SCORES}TestFpgm::test_sums_of_distances"),
            ("bn-scale", "the size of gamma", f"{SCORES}TestNeighbours::test_bn_scale_is_the_size_of_gamma"),
            ("next-layer", "the norm of the next layer's input slice", f"{SCORES}TestNeighbours::"
             "test_next_layer_is_the_norm_of_its_input_slice"),
            ("activation", "`torch.nn.functional.unfold`", "pruning/importance/test_activations.py::TestActivation::"
             "test_convolutions_by_unfold"),
            ("taylor", "the loss after a small step to zero", f"{GRADIENTS}TestFirstOrder::"
             "test_is_the_change_of_the_loss_by_a_small_step_to_zero"),
            ("taylor-group", "the loss after removing a channel, to first order", f"{SCORES}TestData::"
             "test_taylor_group_is_the_loss_change_of_removing_a_channel_to_first_order"),
            ("obd-fisher", "a loop over single examples", f"{GRADIENTS}TestFisher::"
             "test_is_a_loop_over_single_examples"),
            ("obd-hutchinson", "the true increase of a quadratic loss", f"{GRADIENTS}TestSecondOrder::"
             "test_on_a_quadratic_it_is_the_true_increase_of_the_loss"),
            ("reconstruction", "all next channels tried by least squares",
             "pruning/importance/test_reconstruction.py::TestOrder::"
             "test_every_step_is_the_least_damaging_one"),
            ("one's own", "the function itself", f"{SCORES}TestOwn::test_of_a_weight"),
        ],
        "allocation": [
            ("uniform", "closed form", f"{EXACT}test_uniform"),
            ("global", "`global_unstructured` of PyTorch", f"{EXACT}test_global_is_pytorchs_global_unstructured"),
            ("lamp", "its definition, a double sum", f"{EXACT}test_lamp_by_its_double_sum"),
            ("erk", "closed form", f"{EXACT}test_erk_by_its_closed_form"),
            ("last-layers", "closed form", f"{EXACT}test_last_layers"),
            ("scan", "every grid point of the same size", "spaces/allocation/test_allocators.py::TestScan::"
             "test_is_no_worse_than_any_grid_point_of_the_same_size"),
            ("scan-speed", "fewer MACs at the same size than `scan`",
             "spaces/allocation/test_lagrangian.py::TestSolutions::"
             "test_the_mix_trades_size_for_macs"),
        ],
        "scope": [
            ("one layer", "`l1_unstructured` of PyTorch", f"{MASKS}test_fine_grained_is_l1_unstructured"),
            ("all layers", "`global_unstructured` of PyTorch", "pruning/test_pytorch_equality.py::TestAllLayers::"
             "test_global_unstructured"),
            ("a channel group", "the smallest request of its members holds", "pruning/channels/test_tracing.py::"
             "test_unequal_requests_take_the_smallest"),
        ],
        "schedule": [
            ("one-shot", "all is due at once", "pruning/test_schedule.py::test_one_shot_is_due_at_once"),
            ("polynomial", "exact fractions", "pruning/test_schedule.py::test_polynomial_in_exact_fractions"),
            ("iterative", "by hand", "pruning/test_schedule.py::test_rounds_by_hand"),
            ("mask updates", "rise to exactly 1 whatever divides what", "pruning/test_schedule.py::"
             "test_updates_rise_to_one_whatever_divides_what"),
            ("regrow", "weights take up the values they had", "pruning/test_prune.py::TestGradualPruner::"
             "test_regrown_weights_take_up_the_value_they_had"),
        ],
        "surgery": [
            ("removed channels", "the masked network's outputs", "pruning/channels/test_tracing.py::"
             "test_shrunk_equals_masked"),
            ("slices", "by hand", "pruning/channels/test_tracing.py::test_chain_slices_by_hand"),
            ("removal, then masks", "counts of what stays", "pruning/test_prune.py::TestPrune::"
             "test_removal_then_masks_counts_what_stays"),
            ("sorted channels", "same function; the inverse restores every bit", "pruning/test_channel_order.py::"
             "test_every_order_is_the_same_function_and_its_inverse_restores_every_bit"),
            ("transposed convolutions", "silenced channels", "pruning/test_transposed.py::"
             "test_removal_equals_silenced_channels"),
            ("refitted next layer", "least squares", "pruning/importance/test_reconstruction.py::TestRefit::"
             "test_is_least_squares"),
        ],
        "torch.nn.utils.prune": [
            ("in", "outputs, weights and masks of PyTorch", f"{TORCH}TestImportOfModels::"
             "test_outputs_weights_and_masks_are_those_of_pytorch"),
            ("out", "what `custom_from_mask` leaves", f"{TORCH}TestExport::test_it_is_what_custom_from_mask_leaves"),
            ("out and in", "nothing changes", f"{TORCH}TestExport::test_import_undoes_export"),
            ("pruning methods", "their own `compute_mask`", f"{TORCH}TestMethods::test_the_mask_is_the_methods_own"),
        ],
        "size": [
            ("nonzero, 32 bit", "the pruning labs' numbers", f"{LABS}test_layerwise"),
            ("encoded", "the file on disk", f"{LABS}test_file_on_disk"),
            ("dense file", "safetensors' own, byte for byte", "spaces/cost/test_footprint.py::TestContainer::"
             "test_dense_file_is_byte_for_byte_safetensors_own"),
            ("rounded weights", "an independent decoder of the file", "pruning/file/test_version_2.py::TestGolden::"
             "test_an_independent_decoder_reads_the_same"),
        ],
        "training": [
            ("fine-tune", "ends at the policy's shares, whatever the schedule", "search/training/test_train.py::"
             "test_every_schedule_ends_at_the_policy"),
            ("scratch-e", "steps of as many epochs as the dense model, by hand", FRESH, "scratch-e"),
            ("scratch-b", "steps of as much compute as the dense model, by hand", FRESH, "scratch-b"),
            ("masks on fresh weights", "masked weights stay zero", "search/training/test_train.py::"
             "test_masks_are_held_on_fresh_weights"),
        ],
    }.items()
    for row in rows
)  # fmt: skip


@dataclass(frozen=True)
class Outcome:
    """Cases of one row's test, by how they ended."""

    passed: int = 0
    failed: int = 0
    skipped: int = 0

    @property
    def good(self) -> bool:
        return self.passed > 0 and not self.failed and not self.skipped

    def __str__(self) -> str:
        counts = {"passed": self.passed, "failed": self.failed, "skipped": self.skipped}
        return ", ".join(f"{count} {word}" for word, count in counts.items() if count) or "no such test"


@dataclass(frozen=True)
class Case:
    """A line of pytest's report: where, the test with its parameters, and `passed`, `failed` or `skipped`."""

    place: str
    name: str
    ending: str


def run(rows: Sequence[Primitive]) -> list[Outcome]:
    """Run the tests of these rows, each once, in a process of their own."""
    tests = list(dict.fromkeys(f"tests/{row.test}" for row in rows))
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}", *tests]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        if not report.is_file():
            raise RuntimeError(f"pytest gave no report: {(done.stdout + done.stderr).strip()[-500:]}")
        cases = list(read_cases(report.read_text()))
    return [outcome(row, cases) for row in rows]


def read_cases(report: str) -> Iterator[Case]:
    """From JUnit XML."""
    for case in ElementTree.fromstring(report).iter("testcase"):
        endings = {child.tag for child in case}
        ending = "failed" if endings & {"failure", "error"} else "skipped" if "skipped" in endings else "passed"
        yield Case(case.get("classname", ""), case.get("name", ""), ending)


def outcome(row: Primitive, cases: Sequence[Case]) -> Outcome:
    """Of the cases that are this row's."""
    file, *inner = row.test.split("::")
    place = ".".join(["tests", *file.removesuffix(".py").split("/"), *inner[:-1]])
    own = [
        case.ending
        for case in cases
        if case.place == place and case.name.partition("[")[0] == inner[-1] and row.case in case.name.partition("[")[2]
    ]
    return Outcome(*(own.count(word) for word in ("passed", "failed", "skipped")))


def markdown(rows: Sequence[Primitive], outcomes: Sequence[Outcome]) -> str:
    """The table; `python -m` before a command runs its row alone."""
    lines = ["| part | primitive | law or oracle | command, after `python -m` | result |", "|---|---|---|---|---|"]
    for row, found in zip(rows, outcomes, strict=True):
        lines.append(f"| {row.part} | {row.name} | {row.law} | `{row.command}` | {found} |")
    return "\n".join(lines) + "\n"


def show(rows: Sequence[Primitive], output: Path | None) -> bool:
    """Run, print, write; whether all passed."""
    outcomes = run(rows)
    table = markdown(rows, outcomes)
    failing = [f"{row.part}: {row.name}" for row, found in zip(rows, outcomes, strict=True) if not found.good]
    if output is not None:
        title = "# Primitives\n\nWritten by `python tests/benchmarks/primitive_table.py show --output FILE`"
        versions = f"torch {version('torch')}, numpy {version('numpy')}; {hardware()}"
        output.write_text(f"{title}; {versions}.\n\n{table}")
    print(table)
    head = {"benchmark": "primitive_table", "hardware": hardware(), "torch": version("torch")}
    passed = sum(found.passed for found in outcomes)
    print(json.dumps(head | {"rows": len(rows), "cases_passed": passed, "not_passing": failing}))
    return not failing


def main() -> int:
    parts = list(dict.fromkeys(row.part for row in PRIMITIVES))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    showing = parser.add_subparsers(dest="command", required=True).add_parser("show")
    showing.add_argument("--part", choices=parts, help="only rows of this part")
    showing.add_argument("--output", type=Path, help="a Markdown file to write")
    options = parser.parse_args()
    rows = [row for row in PRIMITIVES if options.part in (None, row.part)]
    return 0 if show(rows, options.output) else 1


if __name__ == "__main__":
    sys.exit(main())
