"""`front` as rows, as a picture, and beside that of another study."""

from __future__ import annotations

import csv
import io
import itertools
import json
import shutil
from dataclasses import replace
from io import BytesIO

import pytest
from exports import LAYERS
from hand_made_study import study, trial
from matplotlib.image import imread
from replies import one_line_error

from search.metric import Metric, metric_to_plain
from search.results.view import load_front
from search.store.study_record import ARCHITECTURE, DATA, LATENCY_DEVICE, of_split
from spaces.cost.footprint import RelativeCost

MAGIC = {"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}
CONTRACT_COLUMNS = {
    "trial", "accuracy", "final_accuracy", "test_accuracy", "test_sd", "size", "size_nonzero", "size_encoded", "macs",
    "latency", "granularity", "schedule", "exponent", "criterion", "sparsity",
}  # fmt: skip


@pytest.fixture(scope="module")
def two(finished, tmp_path_factory):
    """A root with the finished study and one whose trials are the same but for the most accurate, which lacks."""
    root = tmp_path_factory.mktemp("two")
    for name in (finished.name, "shorter"):
        shutil.copytree(finished.path, root / name)
    (root / "shorter" / "journal" / f"trial-{finished.reply['best']:05d}.json").unlink()
    return root


@pytest.mark.parametrize("kind", MAGIC)
def test_the_front_is_drawn_as_its_ending_says(main, finished, tmp_path, kind):
    file = tmp_path / "new" / f"front.{kind.upper() if kind == 'png' else kind}"
    done = main("front", finished.name, "--picture", file)
    assert done.code == 0 and done.out.endswith(f"Written to {file.parent}: {file.name}\n"), done.err
    content = file.read_bytes()
    assert content.startswith(MAGIC[kind])
    again = main("front", finished.name, "--picture", file, "--json")
    assert json.loads(again.out)["picture"] == str(file) and file.read_bytes() == content


def test_rows_for_programs_stay_alone(main, finished, tmp_path):
    plain = main("front", finished.name, "--format", "csv").out
    assert main("front", finished.name, "--format", "csv", "--picture", tmp_path / "a.png").out == plain


@pytest.mark.parametrize("file", ["front.gif", "front", "front.png/", ".png"])
def test_another_format_is_refused_before_anything_is_read(main, finished, tmp_path, file):
    (tmp_path / "front.png").mkdir()
    done = main("front", "no-such-study", "--picture", f"{tmp_path}/{file}")
    assert done.code == 2 and "--picture" in done.err and not [p for p in tmp_path.rglob("*") if p.is_file()]


def test_two_fronts_stand_side_by_side(main, two, finished, tmp_path):
    words = ("front", finished.name, "--root", two, "--compare", "shorter")
    found = json.loads(main(*words, "--json").out)["studies"]
    assert [one["study"] for one in found] == [finished.name, "shorter"]
    for one in found:
        alone = json.loads(main("front", one["study"], "--root", two, "--json").out)["front"]
        assert one["front"] == alone
    assert found[0]["front"] != found[1]["front"]
    assert main(*words, "--max-size", 0.0001).out == "no feasible trial in either study\n"
    text = main(*words, "--picture", tmp_path / "both.png").out
    lines = text.splitlines()
    assert lines[0].split() == ["encoded", finished.name, "shorter", "MACs", "trial", "granularity", "bits"]
    assert len(lines) == 1 + sum(len(one["front"]) for one in found) + 2 and "differ" not in text
    sizes = [float(line.split()[0]) for line in lines[1:-2]]
    assert sizes == sorted(sizes, reverse=True)
    pixels = imread(BytesIO((tmp_path / "both.png").read_bytes()))[..., :3]
    for colour in ((0x0A, 0x4D, 0x8C), (0xD5, 0x5E, 0x00)):
        assert (abs(pixels * 255 - colour).max(axis=2) < 2).sum() > 50


def with_metric(root, name, **metric):
    """A study of one trial, half of whose dense value is a share of 0.45, that is 0.9 / 2."""
    folder = study(root, name)
    folder.write_record({**folder.read_record(), "metric": metric_to_plain(Metric("RMSE", **metric))})
    folder.journal.write_trial(trial(0, 0.45, 0.2))


def test_values_without_a_range_stand_side_by_side_as_each_study_has_them(main, tmp_path):
    """By hand: an error of twice the dense one's, which is 2.0 and 8.0."""
    with_metric(tmp_path, "small", best="min", dense=2.0)
    with_metric(tmp_path, "large", best="min", dense=8.0)
    words = ("front", "small", "--root", tmp_path, "--compare", "large")
    cells = [line.split()[2] for line in main(*words).out.splitlines()[1:]]
    assert cells == ["4", "16"]
    studies = json.loads(main(*words, "--json").out)["studies"]
    assert [(one["front"][0]["accuracy"], one["front"][0]["value"]) for one in studies] == [(0.45, 4), (0.45, 16)]


@pytest.mark.parametrize("metric", [{"best": "max", "dense": 2.0}, {"best": "min", "low": 0, "high": 1}], ids=str)
def test_metrics_that_share_a_name_only_are_not_compared_and_that_is_said(main, tmp_path, metric):
    with_metric(tmp_path, "one", best="min", dense=2.0)
    with_metric(tmp_path, "two", **metric)
    done = main("front", "one", "--root", tmp_path, "--compare", "two")
    said = done.out.splitlines()[-1]
    assert said.startswith("one and two differ in metric (RMSE best min, RMSE best m") and done.code == 0
    assert said.endswith(" Their encoded sizes and MACs can be compared.")
    drawn = main("front", "one", "--root", tmp_path, "--compare", "two", "--picture", tmp_path / "a.png")
    assert drawn.code == 2 and "leave it out, since one and two differ in metric" in drawn.err


@pytest.mark.parametrize(("theirs", "differ"), [("1a", False), ("2b", True)])
def test_studies_of_earlier_versions_are_told_apart_by_their_one_fingerprint(main, tmp_path, theirs, differ):
    for name, data in (("one", "1a"), ("two", theirs)):
        folder = limited(tmp_path, name)
        record = folder.read_record()
        folder.write_record({**record, "identity": {**record["identity"], DATA: data}})
    text = main("front", "one", "--root", tmp_path, "--compare", "two").out
    said = "one and two differ in validation data. Their encoded sizes and MACs can be compared."
    assert (said in text) is differ and ("differ" in text) is differ


def test_studies_of_other_objectives_limits_and_data_say_what_compares(main, tmp_path):
    for name, options in (
        ("by-macs", {}), ("fast", {"cost": "latency", "max_size": 0.5}), ("faster", {"cost": "latency"}),
    ):  # fmt: skip
        folder = limited(tmp_path, name, **options)
        identity = {LATENCY_DEVICE: "a CPU"} if options else {of_split("validation"): "other images"}
        record = folder.read_record()
        folder.write_record({**record, "identity": {**record["identity"], **identity}})
    done = main("front", "by-macs", "--root", tmp_path, "--compare", "fast")
    header, *_, said = done.out.splitlines()
    assert header.split() == ["encoded", "by-macs", "fast", "MACs", "trial", "granularity", "bits"]
    assert said == (
        "by-macs and fast differ in third objective (MACs, predicted latency), size limit (25 %, 50 %) and "
        "validation data. Their encoded sizes and MACs can be compared."
    )
    folder.write_record({**record, "identity": {**record["identity"], ARCHITECTURE: "another"}})
    said = main("front", "fast", "--root", tmp_path, "--compare", "faster").out.splitlines()[-1]
    assert "and architecture. Their accuracies, encoded sizes" in said
    assert said.endswith(" can be compared, as shares of two different dense models.")
    folder.write_record({**record, "identity": {**record["identity"], **identity}})
    done = main("front", "faster", "--root", tmp_path, "--compare", "fast", "--max-size", 0.2)
    assert done.out.split()[:5] == ["encoded", "faster", "fast", "MACs", "latency"] and "differ" not in done.out
    study(tmp_path, "coarse", size_metric="nonzero", bits=(32,))
    done = json.loads(main("front", "by-macs", "--root", tmp_path, "--compare", "coarse", "--json").out)
    assert done["differences"] == ["size metric (encoded, nonzero)", "validation data"]


@pytest.mark.parametrize(("words", "said"), [(["--all"], "--all"), (["--format", "csv"], "csv"), ([], "itself")])
def test_a_comparison_that_says_nothing_is_refused(main, two, finished, words, said):
    other = "shorter" if words else finished.name
    done = main("front", finished.name, "--root", two, "--compare", other, *words)
    assert done.code == 2 and said in done.err


def test_a_policy_is_drawn_in_place_of_the_front(main, finished, tmp_path):
    file, front = tmp_path / "policy.png", tmp_path / "front.png"
    done = main("front", finished.name, "--trial", "best", "--picture", file)
    assert done.code == 0 and done.out.endswith(f"Written to {tmp_path}: policy.png\n"), done.err
    whole = main("front", finished.name, "--picture", front).out
    assert whole.replace("front.png", "policy.png") == done.out
    best = tmp_path / "number.png"
    assert main("front", finished.name, "--trial", finished.reply["best"], "--picture", best).code == 0
    assert best.read_bytes() == file.read_bytes() != front.read_bytes()


def test_whose_policy_is_drawn_is_said_with_a_picture_and_exists(main, finished, tmp_path):
    for words, said in (
        (["--trial", "best"], "--trial best has no effect without --picture"),
        (["--trial", "0", "--compare", "other", "--picture", tmp_path / "a.png"], "no effect beside --compare"),
        (["--trial", "99", "--picture", tmp_path / "a.png"], "trial 99 is not a complete trial"),
        (["--trial", "worst", "--picture", tmp_path / "a.png"], "got 'worst'"),
    ):
        done = main("front", finished.name, *words)
        assert done.code == 2 and said in done.err and not list(tmp_path.iterdir())


def limited(root, name="limited", **options):
    """A study of four trials, by hand: the more accurate, the more MACs and the less latency."""
    folder = study(root, name, **options)
    costs = ((0.9, 0.25, 0.8, 0.3), (0.8, 0.2, 0.6, 0.5), (0.7, 0.15, 0.4 * (1 + 1e-12), 0.7), (0.6, 0.1, 0.3, None))
    for number, (accuracy, size, macs, latency) in enumerate(costs):
        shares = RelativeCost(encoded=size, nonzero=size, macs=macs, macs_nonzero=macs)
        one = trial(number, accuracy, size, latency=latency)
        folder.journal.write_trial(replace(one, result=replace(one.result, shares=shares)))
    return folder


@pytest.mark.parametrize(
    ("limits", "numbers"),
    [
        ((), [0, 1, 2]),
        (("--max-macs", 0.6), [1, 2]),
        (("--max-macs", 0.4), [2]),
        (("--max-latency", 0.5), [0, 1]),
        (("--max-latency", 0.5, "--max-macs", 0.7), [1]),
        (("--max-latency", 0.9, "--max-macs", 0.9, "--max-size", 0.2), [1, 2]),
        (("--max-macs", 0.1), []),
    ],
)
def test_the_front_is_sliced_by_limits_on_speed(main, tmp_path, limits, numbers):
    limited(tmp_path, cost="latency")
    done = main("front", "limited", "--root", tmp_path, "--format", "json", *limits)
    assert [row["trial"] for row in json.loads(done.out)] == numbers
    text = main("front", "limited", "--root", tmp_path, *limits).out.strip()
    assert ("Within " in text) is bool(limits)
    if "--max-size" in limits:
        within = "Within 20 % of the encoded size, 90 % of the MACs and 90 % of the predicted latency"
        assert text.endswith(f"\n\n{within}: 2 trials on the front.")
    options = {name.lstrip("-").replace("-", "_"): share for name, share in zip(limits[::2], limits[1::2], strict=True)}
    assert [*load_front("limited", tmp_path, **options)["trial"]] == numbers


def test_a_limit_on_what_is_not_predicted_is_refused(main, tmp_path):
    limited(tmp_path, cost="macs")
    done = main("front", "limited", "--root", tmp_path, "--max-latency", 0.5)
    assert done.code == 2 and "'limited' predicts no latency" in done.err and "give max-macs" in done.err
    assert main("front", "limited", "--root", tmp_path, "--max-macs", 0.6).code == 0


@pytest.mark.parametrize("name", ["../tiny", "/etc", "tiny/../tiny", "", "x" * 300, ".hidden"])
def test_a_study_name_is_no_path(main, finished, name):
    one_line_error(main("front", name), 2, repr(name)[:40])


def test_front_json_has_the_contract_columns_and_honest_values(run, finished):
    rows = json.loads(run("front", "tiny", "--format", "json").stdout)
    assert rows and isinstance(rows, list)
    for row in rows:
        assert row.keys() >= CONTRACT_COLUMNS
        assert row["sparsity"].keys() <= LAYERS and all(0 <= s < 1 for s in row["sparsity"].values())
        assert row["size"] == row["size_encoded"] <= finished.limit and row["latency"] is None
        assert all(type(row[key]) is float for key in ("accuracy", "size", "size_nonzero", "macs"))
        assert type(row["trial"]) is int and "state" not in row
        journal = json.loads((finished.path / "journal" / f"trial-{row['trial']:05d}.json").read_text())
        assert row["accuracy"] == journal["result"]["accuracy"] and row["sparsity"] == journal["policy"]["sparsity"]
    measured = [row for row in rows if row["final_accuracy"] is not None]
    unpruned = [row for row in measured if not any(row["sparsity"].values())]  # dense at these bits has finals, too
    assert 1 <= len(measured) <= 2 + len(unpruned) and all(0 <= row["test_accuracy"] <= 1 for row in measured)


def test_front_csv_and_table_show_the_same_trials(main, finished):
    rows = json.loads(main("front", "tiny", "--format", "json").out)
    shown = list(csv.DictReader(io.StringIO(main("front", "tiny", "--format", "csv").out)))
    assert [int(row["trial"]) for row in shown] == [row["trial"] for row in rows]
    assert [json.loads(row["sparsity"]) for row in shown] == [row["sparsity"] for row in rows]
    first, _, table = main("front", "tiny").out.partition("\n\n")
    assert first == f"Dense accuracy: {finished.reply['dense_accuracy'] * 100:.2f} % on validation data"
    lines = [line for line in table.partition("\n\n")[0].splitlines() if line.strip()]
    assert [int(line.split()[0]) for line in lines[1:]] == [row["trial"] for row in rows]


def test_front_json_flag_wraps_the_rows_in_one_object(main, finished):
    wrapped = json.loads(main("front", "tiny", "--json").out)
    assert wrapped["study"] == "tiny"
    assert wrapped["front"] == json.loads(main("front", "tiny", "--format", "json").out)


def test_front_all_lists_every_trial_with_state_and_running_seconds(main, finished):
    rows = json.loads(main("front", "tiny", "--all", "--format", "json").out)
    assert [row["trial"] for row in rows] == list(range(8))
    assert {row["state"] for row in rows} == {"complete"}
    assert rows[0].keys() >= {"state", "reason", "rung", "started", "finished"} | CONTRACT_COLUMNS
    for before, after in itertools.pairwise(rows):
        assert 0 <= before["started"] < before["finished"] <= after["started"]
    assert [row["reason"] for row in rows] == [None] * 8


def test_front_can_be_sliced_by_another_limit(main, finished):
    whole = json.loads(main("front", "tiny", "--all", "--format", "json").out)
    sizes, chance = (
        sorted(row["size"] for row in whole),
        json.loads((finished.path / "study.json").read_text())["chance"],
    )
    for limit in (sizes[3], 1.0):
        within = [row for row in whole if row["size"] <= limit and row["accuracy"] > chance]
        expected = {
            row["trial"]
            for row in within
            if not any(
                other["accuracy"] >= row["accuracy"] and other["size"] <= row["size"] and other["macs"] <= row["macs"]
                and (other["accuracy"], other["size"], other["macs"]) != (row["accuracy"], row["size"], row["macs"])
                for other in within
            )
        }  # fmt: skip
        sliced = json.loads(main("front", "tiny", "--format", "json", "--max-size", limit).out)
        assert {row["trial"] for row in sliced} == expected
    nothing = main("front", "tiny", "--format", "json", "--max-size", sizes[0] / 2)
    assert (nothing.code, json.loads(nothing.out)) == (0, [])
    for wrong in ("0", "1.5", "nan", "-1"):
        one_line_error(main("front", "tiny", f"--max-size={wrong}"), 2, "max-size")
