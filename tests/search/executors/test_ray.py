"""Studies on a Ray cluster of two nodes on this machine, one of which dies."""

from __future__ import annotations

import os
import platform
import signal
import tempfile
import threading
from pathlib import Path

import pytest
from watchers import Notes
from worker_processes import runs, wait_until

from search import SearchConfig, run_search
from search.errors import EnvironmentProblem, UsageError
from search.process.interrupts import SIGNALS
from search.results.tables import plain_rows
from search.store.journal import Journal

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """A head without cores, to which nodes of one core each are added."""
    pytest.importorskip("ray", reason="pip install 'prunefront[ray]'")
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    from ray.cluster_utils import Cluster

    head = {"num_cpus": 0, "include_dashboard": False, "object_store_memory": 100 * 2**20}
    made = Cluster(initialize_head=True, head_node_args=head)
    yield made
    made.shutdown()


def config(place, root, study: str, **options) -> SearchConfig:
    options = {"trials": 6, "finalists": 0, "warm_start": False, "sampler": "random", "max_size": 0.5} | options
    options["cost"] = "macs"
    return SearchConfig(workload=f"{place / 'tiny.py'}:slow", root=str(root), study=study, threads=1, **options)


def told(result) -> dict[int, tuple]:
    trials = Journal(result.folder / "journal").trials()
    return {t.number: (t.params, t.result.accuracy, t.result.loss, t.result.shares, t.result.reason) for t in trials}


def folders_of_nodes() -> set[Path]:
    return {*Path(tempfile.gettempdir()).glob("prunefront-worker-*")}


def test_a_node_that_dies_costs_an_attempt_and_the_results_are_those_of_one_process(
    cluster, place, tmp_path, without_mlflow
):
    alone = run_search(config(place, tmp_path, "alone", finalists=1, final_repeats=1))
    before_any = folders_of_nodes()
    hold = tmp_path / "hold"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOLD", str(hold))  # of the nodes' processes alone
        nodes = [cluster.add_node(num_cpus=1, object_store_memory=100 * 2**20) for _ in range(2)]
    journal, handlers = tmp_path / "shared" / "journal", [signal.getsignal(number) for number in SIGNALS]

    def end_a_node() -> None:
        """While both workers are within a trial: they wait until one of them is dead."""
        assert wait_until(lambda: any(journal.glob("trial-*")), 600)
        hold.mkdir()
        try:
            assert wait_until(lambda: len([*hold.iterdir()]) == 2, 600)  # the second may begin late
            cluster.remove_node(nodes[1], allow_graceful=False)
            assert wait_until(lambda: not all(runs(int(path.name)) for path in hold.iterdir()))
        finally:
            hold.rename(tmp_path / "ended")

    watcher = Notes()
    threading.Thread(target=end_a_node, daemon=True).start()
    options = {"executor": "ray", "ray_address": cluster.address, "workers": 2, "finalists": 1, "final_repeats": 1}
    result = run_search(config(place, tmp_path, "shared", **options), watcher)
    assert told(result) == told(alone) and len(told(result)) == 6
    assert {trial["worker"] for trial in plain_rows(alone.state.rows)} == {None}
    names = {f"{number} on {platform.node()}" for number in (1, 2)}
    assert {trial["worker"] for trial in plain_rows(result.state.rows)} <= names
    journals = (Journal(one.folder / "journal") for one in (alone, result))
    before, now = ([(r.digest, r.result.loss, r.test_loss) for r in one.finals()] for one in journals)
    assert before == now
    assert [note for note in watcher.notes if "begins again, as it was cut off" in note], watcher.notes
    kept = {path.name for path in (result.folder / "checkpoints").glob("*-0*.safetensors")}
    lost = sum("gone with their node" in note for note in watcher.notes)
    assert len(kept) + lost >= len(result.front) and not [*journal.glob("begun-*"), *journal.glob("pending-*")]
    assert [signal.getsignal(number) for number in SIGNALS] == handlers
    assert len(folders_of_nodes() - before_any) <= 1, "only the node that died keeps its files"


def test_no_cluster_is_one_line_before_a_trial(cluster, place, tmp_path, without_mlflow, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(UsageError, match="--executor ray needs --ray-address HOST:PORT"):
        run_search(config(place, tmp_path, "nowhere", executor="ray"))
    with pytest.raises(EnvironmentProblem, match=r"cannot reach a Ray cluster at '127.0.0.1:1'"):
        run_search(config(place, tmp_path, "nowhere", executor="ray", ray_address="127.0.0.1:1"))
    assert not (tmp_path / "nowhere").exists()
    assert not told(run_search(config(place, tmp_path, "nowhere", trials=1))).keys() - {0}
    with pytest.raises(EnvironmentProblem, match=r"cannot reach a Ray cluster at '127.0.0.1:1'"):
        run_search(config(place, tmp_path, "nowhere", trials=2, executor="ray", ray_address="127.0.0.1:1"))
