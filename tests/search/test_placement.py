"""Devices and precisions: which there are, how they are asked for, and what goes to them."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from fake_device import DEVICE, OnDevice, traffic
from torch import nn

from search import placement
from search.config import SearchConfig
from search.errors import EnvironmentProblem, UsageError
from search.identity.study_identity import latency_device
from search.identity.unchanged import refuse_other_latency_device
from search.options import PLACEMENT_OPTIONS
from search.placement import CPU, Placement, devices, placement_of
from search.store.study_record import new_record, resumed_config
from search.training.dense_model import build_model
from search.workloads import get_workload
from search.workloads.base import Workload, placed


@pytest.fixture
def machine(monkeypatch):
    """A machine with so many CUDA cards, and an MPS device or none; the real CPU computes."""

    def has(cards: int, mps: bool = False) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: cards > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: cards)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"Card {device.index}")
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)

    return has


@pytest.mark.parametrize(
    ("cards", "mps", "asked", "got"),
    [
        (0, False, "auto", "cpu"), (0, True, "auto", "mps"), (2, True, "auto", "cuda:0"), (2, True, "cuda", "cuda:0"),
        (2, False, "cuda:1", "cuda:1"), (1, True, "mps", "mps"), (3, False, "cpu", "cpu"),
    ],
)  # fmt: skip
def test_auto_takes_cuda_then_mps_then_the_cpu(machine, cards, mps, asked, got):
    machine(cards, mps)
    assert placement_of(asked, "fp32", False, None) == Placement(torch.device(got))


@pytest.mark.parametrize(
    ("cards", "asked", "said"),
    [
        (0, "cuda", ["'cuda' is not here", "sees cpu (", "give --device cpu"]),
        (2, "cuda:7", ["'cuda:7'", "cuda:0 (Card 0), cuda:1 (Card 1), cpu (", "give --device cuda:0"]),
        (1, "mps", ["'mps'", "cuda:0 (Card 0)"]),
    ],
)
def test_a_device_that_is_not_here_is_refused_with_those_that_are(machine, cards, asked, said):
    machine(cards)
    with pytest.raises(EnvironmentProblem) as refused:
        placement_of(asked, "fp32", False, None)
    assert [part for part in said if part not in str(refused.value)] == []
    assert "\n" not in str(refused.value)


def test_a_precision_that_a_device_does_not_compute_in_is_refused(monkeypatch):
    real = torch.autocast

    def without_fp16(device, dtype):
        return real(device, dtype=dtype, enabled=dtype != torch.float16)

    monkeypatch.setattr(torch, "autocast", without_fp16)
    with pytest.raises(UsageError, match=r"'fp16' is not computed by cpu \(.*\): give fp32 or bf16$"):
        placement_of("cpu", "fp16", False, None)
    assert placement_of("cpu", "bf16", False, None).precision == "bf16"


def test_options_are_words_before_any_device_is_looked_for():
    for options, said in (
        ({"device": "cuda:x"}, "unknown device 'cuda:x': did you mean 'cuda:0'"),
        ({"device": "gpu"}, "unknown device 'gpu'"),
        ({"precision": "bf61"}, "unknown precision 'bf61': did you mean 'bf16'"),
        ({"threads": 0}, "threads must be a whole number, >= 1"),
    ):
        with pytest.raises(ValueError, match=said):
            SearchConfig(**options)
    assert SearchConfig(device="cuda:7").device == "cuda:7"


def test_on_a_cpu_nothing_is_copied():
    split = torch.zeros(3, 2), torch.zeros(3)
    assert CPU.put(split) is split and CPU.keep(split) is split


def test_splits_stay_on_the_device_where_they_fit(monkeypatch):
    there = Placement(DEVICE)
    split, large = (torch.arange(12.0), torch.arange(3)), (torch.arange(13.0), torch.arange(3))
    monkeypatch.setattr(Placement, "free_bytes", property(lambda _: (12 * 4 + 3 * 8) / placement.RESIDENT_SHARE))
    with traffic() as seen:
        kept = there.keep(split)
        assert all(one is again for one, again in zip(kept, there.keep(split), strict=True))  # copied once
    assert sum(seen.copies.values()) == 2 and all(isinstance(one, OnDevice) for one in kept)
    assert torch.equal(kept[0].cpu(), split[0])
    assert there.keep(large) is large and there.keep(kept) is kept
    monkeypatch.setattr(Placement, "free_bytes", property(lambda _: float("inf")))
    assert there.keep(large) is large  # decided once


def test_what_was_kept_goes_with_its_split():
    before = len(placement._resident)
    split = torch.zeros(5), torch.zeros(5)
    Placement(DEVICE).keep(split)
    assert len(placement._resident) == before + 2
    del split
    assert len(placement._resident) == before


def test_copies_to_cuda_start_from_pinned_memory_and_are_not_waited_for():
    called = []
    pinned = SimpleNamespace(to=lambda device, non_blocking: called.append((device, non_blocking)))
    batch = SimpleNamespace(device=torch.device("cpu"), pin_memory=lambda: pinned)
    Placement(torch.device("cuda:1"))._put(batch)
    assert called == [(torch.device("cuda:1"), True)]


def test_threads_and_determinism_last_as_long_as_the_work(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    monkeypatch.delenv(placement.WORKSPACE[0], raising=False)
    before = torch.get_num_threads()
    with Placement(deterministic=True, threads=before + 2).running():
        assert torch.get_num_threads() == before + 2
        assert torch.are_deterministic_algorithms_enabled() and not torch.backends.cudnn.benchmark
        assert placement.os.environ[placement.WORKSPACE[0]] == ":4096:8"
    assert torch.get_num_threads() == before
    assert not torch.are_deterministic_algorithms_enabled() and torch.backends.cudnn.benchmark


def test_threads_that_are_not_asked_for_are_never_set(monkeypatch):
    monkeypatch.setattr(torch, "set_num_threads", lambda threads: pytest.fail(f"set to {threads}"))
    with Placement().running():
        pass


class Unsteady(torch.autograd.Function):
    """As kernels are whose gradient has no form that repeats itself."""

    @staticmethod
    def forward(ctx, values):
        return values.clone()

    @staticmethod
    def backward(ctx, gradient):
        if torch.are_deterministic_algorithms_enabled():
            raise RuntimeError("unsteady_backward does not have a deterministic implementation")
        return gradient


class UnsteadyNet(nn.Linear):
    def forward(self, inputs):
        return Unsteady.apply(super().forward(inputs))


def test_what_cannot_repeat_itself_is_refused_before_any_training():
    splits = dict.fromkeys(("fit", "calibration", "validation", "test"), (torch.zeros(4, 3), torch.arange(4) % 2))
    workload = Workload("task", lambda: UnsteadyNet(3, 2), **splits)
    assert build_model(workload, 0).weight.grad is None
    steady = Placement(deterministic=True)
    said = "gradient of its loss under --deterministic raised RuntimeError: unsteady_backward does not have"
    with steady.running(), pytest.raises(UsageError, match=said):
        build_model(placed(workload, steady), 0)
    workload = Workload("task", lambda: nn.Linear(3, 2), **splits)
    with steady.running():
        assert build_model(placed(workload, steady), 0).weight.grad is None


def test_a_loss_with_tensors_of_its_own_goes_with_the_network():
    def workload(**changes) -> Workload:
        splits = dict.fromkeys(("fit", "calibration", "validation", "test"), (torch.zeros(4, 3), torch.arange(4) % 2))
        return Workload("task", lambda: nn.Linear(3, 2), **splits, **changes)

    weighted = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 3.0]))
    there = placed(workload(loss=weighted), Placement(DEVICE))
    assert isinstance(there.loss.weight, OnDevice) and not isinstance(weighted.weight, OnDevice)
    assert isinstance(there.example_input, OnDevice) and not isinstance(there.fit[0], OnDevice)
    plain = workload()
    assert placed(plain, CPU) is plain


def test_tensors_from_another_device_are_taken_where_the_placement_says(tmp_path):
    (tmp_path / "away.py").write_text(
        "import torch\nfrom fake_device import DEVICE\nfrom search import Workload\n"
        "from search.placement import Placement\n"
        "def away():\n"
        "    pair = torch.zeros(4, 3).to(DEVICE), (torch.arange(4) % 2).to(DEVICE)\n"
        "    splits = dict.fromkeys(('fit', 'calibration', 'validation', 'test'), pair)\n"
        "    build = lambda: torch.nn.Linear(3, 2).to(DEVICE)\n"
        "    return Workload('away', build, **splits, example_input=pair[0][:2], placement=Placement(DEVICE))\n"
    )
    workload = get_workload(f"{tmp_path / 'away.py'}:away")
    assert workload.placement == CPU
    used = [*workload.fit, workload.example_input, *build_model(workload, 0).parameters()]
    assert not any(isinstance(tensor, OnDevice) for tensor in used)


def test_all_devices_are_named_the_best_first(machine):
    machine(2, mps=True)
    assert devices() == ["cuda:0", "cuda:1", "mps", "cpu"]


def folder(**options) -> SimpleNamespace:
    return SimpleNamespace(config=SearchConfig(**options), name="mine", latency=Path("no table"), untried=None)


def test_where_latency_plays_a_part_a_study_without_a_table_of_its_own_stays_on_its_device():
    there, here = (SimpleNamespace(placement=Placement(device)) for device in (DEVICE, torch.device("cpu")))
    for options in ({"cost": "latency"}, {"max_latency": 0.5}):
        asked = folder(**options)
        part = latency_device(asked.config, there.placement)
        assert list(part.values()) == ["fake"]
        assert refuse_other_latency_device({"identity": part}, asked, there) == part
        with pytest.raises(UsageError, match="device that latency is measured on was 'fake', is"):
            refuse_other_latency_device({"identity": part}, asked, here)
        assert refuse_other_latency_device({"identity": {}}, asked, there) == part  # of an earlier version
        asked.latency = Path(__file__)  # that of any file: the table is there
        assert refuse_other_latency_device({"identity": part}, asked, here) == part
    by_macs = folder(cost="macs")
    assert latency_device(by_macs.config, there.placement) == {}
    assert refuse_other_latency_device({"identity": {}}, by_macs, here) == {}


def test_a_study_keeps_its_precision_and_may_change_its_device():
    record = new_record(SearchConfig(device="cpu", root="r"), {})
    with pytest.raises(UsageError, match="precision was 'fp32', is 'bf16'"):
        resumed_config(SearchConfig(precision="bf16", root="r"), record, "mine")
    assert resumed_config(SearchConfig(device="cuda:1", threads=3, root="r"), record, "mine").device == "cuda:1"
    earlier = record | {"config": {k: v for k, v in record["config"].items() if k not in PLACEMENT_OPTIONS}}
    found = resumed_config(SearchConfig(root="r"), earlier, "mine")
    assert [getattr(found, name) for name in PLACEMENT_OPTIONS] == ["auto", "fp32", False, None]


@pytest.mark.parametrize("command", ["search", "scan"])
def test_commands_refuse_a_device_in_one_line_before_any_work(main, tmp_path, command, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("search.training.train._train", lambda *a: pytest.fail("trained"))
    ended = main(command, "--device", "cuda", "--root", tmp_path / "r")
    assert (ended.code, ended.out) == (3, "")
    assert ended.err.startswith("prunefront: --device 'cuda' is not here, PyTorch ") and ended.err.count("\n") == 1
