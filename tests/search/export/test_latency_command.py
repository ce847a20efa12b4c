"""Commands of a user's own that time networks: what they may say, what fails, and how studies use them."""

from __future__ import annotations

import itertools
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from watchers import Notes

from search import SearchConfig, run_search
from search.errors import GoalMissed, UsageError
from search.export import latency_command, time_onnx
from search.export.latency_command import CommandFailed, seconds_by, time_by, written
from search.results.cells import latency_line
from search.results.comparison import read_comparison
from search.store.folder import StudyFolder
from search.study.device_finals import timed_by_command
from search.training.latency_cache import Unmeasured
from spaces import PruningPolicy

TIME_ONNX = f"{sys.executable} -m search.export.time_onnx {{file}}"
BY_SIZE = """sh -c 'echo loading; printf 0.0; wc -c < "$1"' - {file}"""
"""Says 0.0N seconds for a file of N bytes, N of two digits."""


def is_gone(pid: str) -> bool:
    try:
        return Path("/proc", pid, "stat").read_text().split()[2] in "ZX"
    except OSError:
        return True


def wait(seconds: float) -> Iterator[None]:
    """Looks, one every hundredth of a second."""
    for _ in range(int(100 * seconds)):
        yield
        time.sleep(0.01)


@pytest.fixture
def file(tmp_path) -> Path:
    path = tmp_path / "my model.onnx"
    path.write_bytes(b"x" * 25)
    return path


def test_a_command_gets_the_path_as_one_word_and_its_last_line_counts(file):
    assert seconds_by(BY_SIZE, file) == 0.025
    assert seconds_by("""sh -c 'test "$1" = "path=$2" && test "$3" = "\\$HOME" && echo 1e-3' - path={file} {file} $HOME
    """, file) == 0.001  # fmt: skip


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("sh -c 'echo 1; echo first >&2; echo no phone >&2; exit 3' {file}", "it ended with code 3: no phone"),
        ("false {file}", "it ended with code 1: no error was printed"),
        ("sh -c 'kill -9 $$' {file}", "it was ended by signal 9: no error was printed"),
        ("/no/such/program {file}", "it cannot be run: No such file or directory"),
        ("\ud800 {file}", "it cannot be run: 'utf-8' codec can't encode"),
        ("true {file}", "must be seconds, a number above 0 such as 0.0042, got ''"),
        ("echo 4.2 ms {file}", "must be seconds, a number above 0 such as 0.0042, got '4.2 ms "),
        *((f"sh -c 'echo {word}' {{file}}", f"got '{word}'") for word in ("-0.25", "0", "nan", "inf", "12,5", "0_1")),
    ],
)
def test_what_is_no_number_of_seconds_is_one_line(file, command, said):
    with pytest.raises(CommandFailed) as raised:
        seconds_by(command, file)
    assert said in str(raised.value) and "\n" not in str(raised.value)


def test_a_command_that_hangs_is_ended_with_what_it_started(file, tmp_path):
    command = f"sh -c 'sleep 60 & echo $! > {tmp_path / 'pid'}; wait' {{file}}"
    with pytest.raises(CommandFailed, match=r"^it took longer than 0\.5 s$"):
        seconds_by(command, file, limit=0.5)
    pid = (tmp_path / "pid").read_text().strip()
    assert any(is_gone(pid) for _ in wait(10))


def test_what_a_command_leaves_running_is_not_waited_for_and_ends(file, tmp_path):
    command = f"sh -c 'sleep 60 & echo $! > {tmp_path / 'pid'}; echo 0.25' {{file}}"
    assert seconds_by(command, file, limit=20) == 0.25
    pid = (tmp_path / "pid").read_text().strip()
    assert any(is_gone(pid) for _ in wait(10))


def test_a_command_may_print_much_but_not_without_end(file, monkeypatch):
    monkeypatch.setattr(latency_command, "LOOK_SECONDS", 0.01)
    assert seconds_by("sh -c 'yes ü | head -c 200000; echo; echo 0.25' {file}", file) == 0.25
    monkeypatch.setattr(latency_command, "MOST_OUTPUT", 2**20)
    for where in ("", " >&2"):
        with pytest.raises(CommandFailed, match=r"^it printed more than 1 MiB$"):
            seconds_by(f"sh -c 'yes{where}' {{file}}", file, limit=20)


def test_files_are_timed_in_shuffled_rounds_beside_the_dense_one_and_its_copy(tmp_path, monkeypatch):
    files = {name: tmp_path / f"{name}.onnx" for name in ("dense", "half", "bad")}
    for path, size in zip(files.values(), (40, 20, 30), strict=True):
        path.write_bytes(b"x" * size)
    order = tmp_path / "order"
    command = (
        f"""sh -c 'echo "$1" >> {order}; case "$1" in *bad*) exit 7;; *copy*) printf 0.01;; *) printf 0.0;; esac;"""
        """ wc -c < "$1"' - {file}"""
    )
    monkeypatch.setattr(latency_command, "ROUNDS", 9)
    monkeypatch.setattr(latency_command, "LEAST_ROUNDS", 6)
    dense, left_out, seen = files.pop("dense"), [], []
    clock = itertools.count(step=latency_command.ROUNDS_SECONDS)
    found = time_by(
        command, dense, files, lambda *n: seen.append(n), lambda *why: left_out.append(why), lambda: next(clock)
    )
    assert found.rounds == 6 and seen[-1] == (9, 9) and found.command == command
    assert left_out == [("bad", "it ended with code 7: no error was printed")]
    assert (found.dense.seconds, found.copy.seconds, found.copy.share) == (0.04, 0.014, 0.35)
    assert found.networks.keys() == {"half"} and found.networks["half"].share == 0.5
    assert not found.within_noise("half")
    said = [Path(line).stem for line in order.read_text().splitlines() if "bad" not in line]
    rounds = [said[start : start + 3] for start in range(0, len(said), 3)]
    assert all(sorted(one) == ["copy", "dense", "half"] for one in rounds) and len({*map(tuple, rounds)}) > 1
    for failing in ("false {file}", """sh -c 'case "$1" in *copy*) exit 1;; esac; echo 1' - {file}"""):
        with pytest.raises(CommandFailed, match=r"it ended with code 1: .*, on the dense network$"):
            time_by(failing, dense, files)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"latency_command": "bench"}, r"must have \{file\} where the path of the ONNX file goes, got 'bench'"),
        ({"latency_command": "{file}"}, r"must have \{file\} where"),
        ({"latency_command": "bench '{file}"}, r"cannot be split into words: no closing quotation"),
        ({"latency_command": "bench {file}", "finalists": 0}, "times finals, and finalists is 0"),
    ],
)
def test_commands_that_cannot_be_are_refused(options, said):
    with pytest.raises(UsageError, match=said):
        SearchConfig(**options)


def test_a_command_is_no_part_of_what_a_study_stores():
    """Else somebody else's root would name code that runs here."""
    assert "latency_command" not in SearchConfig(latency_command="bench {file}").stored()


@pytest.mark.parametrize("dry", [(), ("--dry-run",)])
def test_a_command_that_fails_ends_a_search_before_anything_is_trained(main, tmp_path, monkeypatch, dry):
    monkeypatch.setattr(latency_command, "write_onnx", lambda model, example, path, rounded: path.touch())
    monkeypatch.setattr("search.training.train._train", lambda *_: pytest.fail("trained"))
    words = ("--workload", "./tiny.py:tiny", "--root", tmp_path / "root", "--max-size", 0.5, "--cost", "macs")
    ended = main("search", *words, *dry, "--latency-command", "sh -c 'echo no phone >&2; exit 4' {file}")
    assert ended.code == 2 and not (tmp_path / "root" / "tiny").exists()
    (line,) = [line for line in ended.err.splitlines() if line.startswith("prunefront: ")]
    assert line.endswith("fails on the dense network: it ended with code 4: no phone")


class Scaled(nn.Module):
    def __init__(self, outputs: int = 3) -> None:
        super().__init__()
        self.linear = nn.Linear(4, outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x)


@pytest.mark.parametrize("threads", ["0", "-1", "1025", "x"])
def test_onnxruntime_is_given_no_impossible_number_of_threads(monkeypatch, capsys, threads):
    monkeypatch.setattr(sys, "argv", ["time_onnx", "some.onnx", f"--threads={threads}"])
    monkeypatch.setattr(time_onnx, "seconds_of_a_pass", lambda *_: pytest.fail("timed"))
    with pytest.raises(SystemExit, match="2"):
        time_onnx.main()
    assert f"argument --threads: must be a whole number, 1 to 1024, got '{threads}'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("before", "is_stored_alone"), [([], True), (["QuantizeLinear"], False), (["DynamicQuantizeLinear"], False)]
)
def test_integers_that_are_activations_too_stay_integers(tmp_path, before, is_stored_alone):
    onnx = pytest.importorskip("onnx")
    nodes = [onnx.helper.make_node(kind, ["x"], ["y"]) for kind in (*before, "DequantizeLinear", "MatMul")]
    onnx.save(onnx.helper.make_model(onnx.helper.make_graph(nodes, "g", [], [])), tmp_path / "m.onnx")
    assert time_onnx._only_stores_integers(tmp_path / "m.onnx") is is_stored_alone


@pytest.mark.slow
def test_onnxruntime_times_what_an_export_holds():
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    torch.manual_seed(0)
    with written(Scaled(), PruningPolicy({}, bits=4), torch.zeros(2, 4)) as path:
        kinds = {one.data_type for one in onnx.load(path).graph.initializer}
        assert onnx.TensorProto.INT8 in kinds and 0 < seconds_by(TIME_ONNX, path) < 1
        assert time_onnx._only_stores_integers(path), "which are made floats once, not in every run"
    assert not path.exists()
    with written(Scaled().double(), None, torch.zeros(2, 4, dtype=torch.float64)) as path:
        assert time_onnx.seconds_of_a_pass(path) > 0 and not time_onnx._only_stores_integers(path)
    ended = subprocess.run(
        [sys.executable, "-m", "search.export.time_onnx", "absent.onnx"], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 1 and "absent.onnx" in ended.stderr


@pytest.mark.slow
def test_a_study_times_its_finals_by_the_command(place, tmp_path, without_mlflow, monkeypatch):
    pytest.importorskip("onnxruntime")
    monkeypatch.setattr(latency_command, "ROUNDS", 2)
    given = {"workload": f"{place / 'tiny.py'}:tiny", "root": str(tmp_path), "trials": 2, "sampler": "random"}
    given |= {"warm_start": False, "max_size": 0.5, "cost": "macs", "bits": 32, "finalists": 1, "final_repeats": 1}
    result, folder = run_search(SearchConfig(**given, latency_command=TIME_ONNX)), StudyFolder(tmp_path, "tiny")
    timed = read_comparison(folder).latency
    assert timed == result.comparison.latency and timed.command == TIME_ONNX and timed.rounds == 2
    assert timed.networks.keys() == {*result.comparison.digests}
    assert latency_line(timed).startswith(f"Latency: by the command {TIME_ONNX!r}; share of the dense model's")
    again = run_search(SearchConfig(**given))
    assert again.comparison.latency == timed, "what was measured stays, though the command is not given again"


def test_a_network_is_written_as_it_is_stored_and_stays_as_it_was(monkeypatch):
    given = []
    monkeypatch.setattr(latency_command, "write_onnx", lambda model, example, path, rounded: given.append(rounded))
    torch.manual_seed(0)
    model = Scaled().train()
    before = model.linear.weight.detach().clone()
    for policy in (None, PruningPolicy({}), PruningPolicy({}, bits=4)):
        with written(model, policy, torch.zeros(2, 4)):
            pass
    assert [[*rounded] for rounded in given] == [[], [], ["linear.weight"]]
    assert model.training and torch.equal(model.linear.weight, before)


def test_finals_do_without_latency_where_their_command_fails(monkeypatch, tmp_path):
    def write(model: nn.Module, example: torch.Tensor, path: Path, rounded: Mapping[str, object]) -> None:
        if model.linear.out_features == 2:
            raise GoalMissed("the network cannot be written as ONNX (no such operator)")
        path.write_bytes(b"x" * (10 * model.linear.out_features + 10 * len(rounded)))

    monkeypatch.setattr(latency_command, "write_onnx", write)
    monkeypatch.setattr(latency_command, "ROUNDS", 1)
    subject = SimpleNamespace(dense=Scaled(), workload=SimpleNamespace(example_input=torch.zeros(2, 4)))
    networks, watcher = {"small": Scaled(1), "odd": Scaled(2)}, Notes()
    policies = {"small": PruningPolicy({}, bits=8), "odd": PruningPolicy({})}
    found = timed_by_command(BY_SIZE, subject, networks, policies, watcher)
    assert (found.dense.seconds, found.networks["small"].seconds, len(found.networks)) == (0.03, 0.02, 1)
    (said,) = watcher.notes
    assert said.startswith("the network of policy odd is compared without latency: the network cannot be written")
    said = r"^--latency-command 'false \{file\}': it ended with code 1: no error was printed, on the dense network$"
    with pytest.raises(Unmeasured, match=said):
        timed_by_command("false {file}", subject, networks, policies, watcher)
