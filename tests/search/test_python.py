"""Studies as a program in Python has them: workloads as objects and functions, results as tables and pictures."""

from __future__ import annotations

import base64
import importlib.util
import json
import shutil
import sys
from copy import copy
from functools import partial
from pathlib import Path
from types import FunctionType
from xml.etree import ElementTree

import pandas as pd
import pytest
from matplotlib.figure import Figure
from torch import nn

from search import Metric, SearchConfig, SearchResult, Workload, load_front, run_search
from search.config import ConfigError
from search.errors import UsageError
from search.given_workload import lives_in_python, spec_of
from search.progress import ProgressReporter
from search.results.state import StudyState
from search.store.folder import StudyFolder
from search.store.study_record import new_record
from search.study.checks import checked_study
from search.user_code.loading import load_function
from search.workloads import get_workload
from search.workloads.digits import digits


@pytest.fixture(scope="module")
def tiny(place):
    """The user's module, as a program imports it."""
    spec = importlib.util.spec_from_file_location("tiny", place / "tiny.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["tiny"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["tiny"]


def options(workload: object, root: Path, **more: object) -> SearchConfig:
    given = {"workload": workload, "root": str(root), "trials": 4, "max_size": 0.5, "finalists": 1, "final_repeats": 1}
    return SearchConfig(**{**given, "sampler": "random", "cost": "macs", **more})


@pytest.fixture(scope="module")
def workload(tiny) -> Workload:
    return tiny.tiny()


@pytest.fixture(scope="module")
def searched(workload, tmp_path_factory) -> SearchResult:
    """A finished study of a workload that was given as an object, `alone`, which no test may change."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("search.study.runner.StudyRunner._projections", lambda *_: [])
        return run_search(options(workload, tmp_path_factory.mktemp("alone"), study="alone"))


def nested():
    return lambda: None


def test_functions_are_named_by_where_others_find_them_and_the_rest_by_a_mark(place, tiny, monkeypatch):
    assert spec_of(tiny.tiny) == f"{place.resolve() / 'tiny.py'}:tiny"
    loaded = load_function("workload", "factory", f"{place / 'tiny.py'}:tiny", "")
    assert spec_of(loaded) == spec_of(tiny.tiny)
    assert spec_of(digits) == "digits" and spec_of(json.dumps) == "json:dumps"
    code = tiny.tiny.__code__.replace(co_filename="/tmp/ipykernel_7/3.py", co_name="cell", co_qualname="cell")
    cell = FunctionType(code, vars(tiny))
    monkeypatch.setattr(tiny, "cell", cell, raising=False)
    found = [spec_of(one) for one in (nested(), partial(tiny.tiny), Workload, cell)]
    assert found == ["<lambda>", "<partial>", "<Workload>", "<cell>"] and all(map(lives_in_python, found))
    assert not any(map(lives_in_python, ("digits", "json:dumps", "./a.py:b")))


def test_a_config_takes_a_workload_and_keeps_it(workload, tiny):
    config = SearchConfig(workload=workload, trials=3)
    assert config.workload == "<tiny>" and config.stored()["workload"] == "<tiny>"
    copied = config.model_copy(update={"trials": 5})
    for one in (config, copied, SearchConfig(trials=3).model_copy(update={"workload": workload})):
        assert get_workload(one.workload, **one.factory_options).fit[0] is workload.fit[0]
    assert config == SearchConfig(workload=workload, trials=3) != SearchConfig(workload="<tiny>", trials=3)
    assert SearchConfig(workload=tiny.tiny).workload == f"{Path(tiny.__file__).resolve()}:tiny"
    assert copied.model_copy(update={"workload": "digits"}).factory is None


@pytest.mark.parametrize("given", [3, None, dict, nn.Linear(2, 2)], ids=str)
def test_what_is_no_workload_is_refused(given):
    said = r"^workload must be a name such as 'digits' or .*, a search.Workload, or a function that returns one, got "
    with pytest.raises(ConfigError, match=said):
        SearchConfig(workload=given)


def test_options_of_a_factory_are_refused_of_a_workload(workload):
    config = SearchConfig(workload=workload, width=0.25)
    with pytest.raises(UsageError, match=r"^workload '<tiny>' takes no --width: it is made already$"):
        get_workload(config.workload, **config.factory_options)
    config = SearchConfig(workload=lambda width: workload, width=0.25)
    assert get_workload(config.workload, **config.factory_options).name == "tiny"


@pytest.mark.parametrize("more", [{"workers": 2}, {"executor": "ray", "ray_address": "localhost:1"}], ids=str)
def test_workers_are_refused_where_they_cannot_find_the_workload(workload, tmp_path, more):
    said = r"^workload '<tiny>' lives in this program alone, where workers cannot find it: .* './file.py:function'"
    with pytest.raises(UsageError, match=said):
        run_search(options(workload, tmp_path, **more))
    assert not [*tmp_path.rglob("study.json")]


def test_a_study_of_an_object_goes_on_with_the_same_one_only(searched, workload, tiny):
    root = searched.folder.parent
    record = StudyFolder(root, "alone").read_record()
    assert record["config"]["workload"] == "<tiny>"
    told = r"^workload '<tiny>' was given in Python, where no other program finds it: give it again by SearchConfig"
    with pytest.raises(UsageError, match=told):
        run_search(SearchConfig(study="alone", root=str(root)))
    with pytest.raises(UsageError, match=r"begun with other settings \(architecture was '\w+', is '\w+'\)"):
        run_search(options(tiny.changed(build_model=changed_network), root, study="alone"))
    with pytest.raises(UsageError, match=r"\(workload was '<tiny>', is '<other>'\)"):
        run_search(options(tiny.changed(name="other"), root, study="alone"))


def changed_network():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))


def test_it_goes_on_with_the_object_and_may_get_a_name(searched, workload, tiny, tmp_path, monkeypatch):
    monkeypatch.setattr("search.study.runner.StudyRunner._projections", lambda *_: [])
    shutil.copytree(searched.folder.parent, tmp_path, dirs_exist_ok=True)
    known = {row.trial: row.digest for row in searched.state.rows}
    for given, name in ((workload, "<tiny>"), (tiny.tiny, spec_of(tiny.tiny))):
        found = run_search(options(given, tmp_path, study="alone"))
        assert {row.trial: row.digest for row in found.state.rows} == known
        assert StudyFolder(tmp_path, "alone").read_record()["config"]["workload"] == name
    for given, name in ((workload, "<tiny>"), ("digits", "digits")):
        with pytest.raises(UsageError, match=rf"\(workload was '/.*/tiny.py:tiny', is '{name}'\)"):
            run_search(options(given, tmp_path, study="alone"))


def test_a_study_asked_for_by_its_name_goes_on_whatever_its_workload_is_called(tiny, tmp_path):
    """Not one that has the workload's name, which this study was not given and had from its workload once."""
    factory = partial(tiny.changed, name="renamed")
    identity = {"recipe": tiny.RECIPE.to_dict()}
    StudyFolder(tmp_path, "begun").write_record(new_record(SearchConfig(workload=factory), identity))
    checked = checked_study(
        SearchConfig(workload=factory, study="begun", root=str(tmp_path)), ProgressReporter(), False
    )
    assert checked.folder.name == checked.config.study == "begun" and checked.workload.name == "renamed"


def test_its_commands_say_what_it_lacks_and_take_the_function_that_makes_it(searched, main, place, tmp_path):
    root = searched.folder.parent
    given = "export", "alone", "--root", root, "--out", tmp_path / "best"
    for words in (given, ("search", "--study", "alone", "--root", root)):
        done = main(*words)
        assert done.code == 2 and done.err.count("\n") == 1
        assert done.err.endswith("or name the function that makes it, by --workload ./file.py:function\n")
    done = main(*given, "--workload", "./tiny.py:without_onnx")
    assert done.code == 2 and "begun with other settings (architecture was " in done.err
    done = main(*given, "--workload", "./tiny.py:tiny", "--json")
    assert done.code == 0, done.err
    named = f"{place.resolve() / 'tiny.py'}:tiny"
    assert json.loads(done.out)["workload"]["workload"] == named
    assert StudyFolder(root, "alone").read_record()["config"]["workload"] == "<tiny>"


def test_a_script_that_searches_when_it_is_loaded_is_told(tmp_path):
    script = tmp_path / "script.py"
    script.write_text("from search import SearchConfig, run_search\nrun_search(SearchConfig())\ndef task(): ...\n")
    with pytest.raises(UsageError, match=r"script.py calls run_search whenever it is loaded, .*: put the call un"):
        get_workload(f"{script}:task")


def test_a_result_is_a_short_table(searched):
    """Of what its front has, with sizes and accuracies as percent."""
    first, best = searched.state.front[0], searched.best
    lines = str(searched).splitlines()
    limit = "50 % of the dense encoded size"
    assert lines[0].endswith(f" %; front of {len(searched.front)} within {limit}; best: trial {best}")
    assert lines[0].startswith("Study alone: 4 complete; dense accuracy ")
    assert lines[2].split() == ["trial", "accuracy", "final", "test", "size", "MACs", "granularity", "bits"]
    assert lines[3].split()[:3] == [str(first.trial), f"{first.accuracy * 100:.2f}", "%"]
    assert lines[-1].split()[3:5] == ["-", "-"]  # no finalist
    assert len(lines) == 3 + len(searched.front) and max(map(len, lines)) <= 120 and repr(searched) == str(searched)


def test_a_long_front_is_cut_short_and_an_empty_one_said(searched, monkeypatch):
    monkeypatch.setattr("search.results.glance.MOST_ROWS", 1)
    more = len(searched.front) - 1
    assert more > 0 and str(searched).splitlines()[-1] == f"and {more} more in .front"
    assert f"<p>and {more} more in .front</p>" in searched._repr_html_()
    nothing = SearchResult("none", searched.folder, StudyState(searched.state.config, {}), {})
    assert str(nothing).splitlines() == [
        "Study none: no trials; dense accuracy unknown; front of 0 within 50 % of the dense encoded size",
        "", "no feasible trial yet",
    ]  # fmt: skip
    assert "<table" not in nothing._repr_html_() and "<img" not in nothing._repr_html_() and len(nothing.front) == 0


def test_a_notebook_shows_the_table_and_the_picture(searched):
    shown = searched._repr_html_()
    page = ElementTree.fromstring(shown.replace('width="720">', 'width="720"/>').replace("&nbsp;", " "))
    assert [cell.text for cell in page.iter("th")][:2] == ["trial", "accuracy"]
    assert len([*page.iter("tr")]) == 1 + len(searched.front) and page.findtext("p") == str(searched).splitlines()[0]
    kind, _, content = page.find("img").get("src").partition(",")
    assert kind == "data:image/png;base64" and base64.b64decode(content) == searched.plot().png()
    assert page.find("img").get("alt") and len(shown) < 150_000


def test_what_a_notebook_shows_is_escaped(searched):
    state = copy(searched.state)
    state.unit = Metric("<script>x", low=0, high=1)
    shown = SearchResult("alone", searched.folder, state, {})._repr_html_()
    assert "<script>" not in shown and shown.count("&lt;script&gt;x") == 3


def test_a_plot_is_a_figure_of_its_own(searched):
    """Which pyplot knows nothing of, and a notebook shows."""
    figure = searched.plot()
    assert isinstance(figure, Figure) and figure is not searched.plot()
    assert "matplotlib.pyplot" not in sys.modules or not sys.modules["matplotlib.pyplot"].get_fignums()
    assert figure._repr_png_().startswith(b"\x89PNG")


def test_an_export_is_that_of_the_command(searched, tmp_path, main):
    manifest = searched.export("smallest", tmp_path / "smallest")
    smallest = searched.front.nsmallest(1, "size")["trial"].item()
    assert manifest["origin"]["trial"] == smallest and manifest["workload"]["workload"] == "<tiny>"
    assert json.loads((tmp_path / "smallest" / "manifest.json").read_text()) == manifest
    again = searched.export(smallest, tmp_path / "again")
    assert again["files"] == manifest["files"]
    with pytest.raises(UsageError, match=r"^trial 99 is not a complete trial of study 'alone'; the nearest is 3$"):
        searched.export(99, tmp_path / "x")
    done = main("verify", tmp_path / "smallest", "--workload", "./tiny.py:tiny")
    assert done.code == 0, done.out


def test_a_front_read_again_is_that_of_the_result(searched):
    read = load_front("alone", searched.folder.parent)
    pd.testing.assert_frame_equal(read, searched.front)
    assert searched.trials["state"].tolist() == ["complete"] * 4 and len(searched.trials.columns) > len(read.columns)
