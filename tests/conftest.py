"""Small networks and a finished study that many tests look at and none may change; the installed command."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import HealthCheck, settings
from torch import nn

from pruning import trace_channels
from search.cli import entry
from search.process import interrupts
from search.workloads.vgg import VGG9

collect_ignore = ["benchmarks/nnc_bytes.py", "benchmarks/nnc_network.py", "helpers/fake_device.py", "helpers/lit.py"]
"""Run by environments of their own, which have what this one has not; a device, which is registered only once; and what
imports an extra.
"""
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
pytest.register_assert_rewrite("refusals", "replies")  # which a failed assertion shows the values of
torch.set_num_threads(1)

# The examples of a law are the same in every run, and a person waits for a third of those that `.ci/run` tries. Laws
# whose examples take long carry `@settings.get_profile("few")`.
IN_CI = bool(os.environ.get("CI"))
LAWS = settings(
    derandomize=True, deadline=None, max_examples=120 if IN_CI else 40, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("few", LAWS, max_examples=30 if IN_CI else 12)
settings.register_profile("many", LAWS)
settings.load_profile("many")
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell ignores it for what it starts in the background


class Residual(nn.Module):
    """Two convolutions that are summed (one channel group), one between them, a linear layer; biases throughout."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 16, 3, padding=1)
        self.inner = nn.Conv2d(16, 12, 3, padding=1)
        self.norm = nn.BatchNorm2d(12)
        self.last = nn.Conv2d(12, 16, 3, padding=1)
        self.classifier = nn.Linear(16, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        start = self.first(images).relu()
        summed = start + self.last(self.norm(self.inner(start)).relu())
        return self.classifier(summed.relu().mean(dim=(2, 3)))


def settled(model: nn.Module) -> nn.Module:
    """Eval mode, with norms that are not at their initial values."""
    generator = torch.Generator().manual_seed(7)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight.data, module.running_var):
                tensor.copy_(0.5 + torch.rand(tensor.shape, generator=generator))
            for tensor in (module.bias.data, module.running_mean):
                tensor.copy_(0.2 * torch.randn(tensor.shape, generator=generator))
    return model.eval()


@pytest.fixture(scope="session")
def images() -> torch.Tensor:
    return torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(3))


@pytest.fixture(scope="session")
def vgg() -> nn.Module:
    """The digits workload's network, an eighth of VGG9."""
    torch.manual_seed(0)
    return settled(VGG9(width=1 / 8, inputs=1, pools=3))


@pytest.fixture(scope="session")
def vgg_graph(vgg, images):
    return trace_channels(vgg, images)


@pytest.fixture(scope="session")
def residual() -> nn.Module:
    torch.manual_seed(1)
    return settled(Residual())


@pytest.fixture(scope="session")
def residual_graph(residual, images):
    return trace_channels(residual, images)


@pytest.fixture(scope="session")
def program() -> str:
    """The installed command, as users run it."""
    found = shutil.which("prunefront", path=Path(sys.executable).parent)
    if found is None:
        pytest.skip("prunefront is not installed in this environment: pip install -e .")
    return found


@pytest.fixture(scope="session")
def place(tmp_path_factory) -> Path:
    """A user's folder with a workload of their own in `tiny.py`."""
    folder = tmp_path_factory.mktemp("user")
    shutil.copy(Path(__file__).with_name("tiny_workload.py"), folder / "tiny.py")
    return folder


@pytest.fixture(scope="session")
def run(program, place):
    """Run the installed command in the user's folder, to its end."""

    def command(*words: object, cwd: Path = place, **options) -> subprocess.CompletedProcess:
        options = {"capture_output": True, "text": True, "timeout": 600, "env": ENVIRONMENT} | options
        return subprocess.run([program, *map(str, words)], cwd=cwd, **options)

    return command


@pytest.fixture(scope="session")
def finished(run, place) -> SimpleNamespace:
    """A finished study, `mlruns/tiny` in the user's folder, which no test may change."""
    words = ("--trials", 8, "--max-size", 0.5, "--finalists", 2, "--cost", "macs")  # the same on every machine
    ended = run("search", "--workload", "./tiny.py:tiny", *words, "--json")
    assert ended.returncode == 0, ended.stderr
    return SimpleNamespace(
        root=place / "mlruns", path=place / "mlruns" / "tiny", name="tiny", limit=0.5, stdout=ended.stdout,
        stderr=ended.stderr, reply=json.loads(ended.stdout),
    )  # fmt: skip


@pytest.fixture(scope="session")
def exported(run, finished, place) -> Path:
    """The export of that study's best trial, which no test may change."""
    ended = run("export", "tiny", "--trial", "best", "--out", "best", "--json")
    assert ended.returncode == 0, ended.stderr
    reply = json.loads(ended.stdout)
    assert reply["origin"]["trial"] == finished.reply["best"]
    return place / "best"


@pytest.fixture(autouse=True)
def own_signals():
    """A command that ran in this process leaves its handlers, as its program ends with it."""
    yield
    interrupts.unwatch()


@pytest.fixture
def without_mlflow(monkeypatch):
    """Studies in this process tell MLflow nothing, which takes most of their time; it has tests of its own."""
    silent = SimpleNamespace(**dict.fromkeys(("start", "log_trial", "log_summary", "finish"), lambda *_: None))
    monkeypatch.setattr("search.study.runner.Tracker", lambda *_: silent)


@pytest.fixture
def main(place, monkeypatch, capfd):
    """Run a command inside this process, in the user's folder: exit code, stdout, stderr."""
    monkeypatch.chdir(place)

    def command(*words: object) -> SimpleNamespace:
        capfd.readouterr()
        try:
            code = entry.main([str(word) for word in words])
        except SystemExit as stop:
            code = stop.code
        out, err = capfd.readouterr()
        return SimpleNamespace(code=code, out=out, err=err)

    return command
