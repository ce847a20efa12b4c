"""Studies as a program in Python has them: workloads as objects and functions, results as tables and pictures."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from functools import partial
from pathlib import Path
from types import FunctionType

import pytest
from torch import nn

from search import SearchConfig, SearchResult, Workload, run_search
from search.config import ConfigError
from search.errors import UsageError
from search.given_workload import lives_in_python, spec_of
from search.store.folder import StudyFolder
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
    return SearchConfig(**{**given, "sampler": "random", **more})


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
    cell = FunctionType(tiny.tiny.__code__.replace(co_filename="/tmp/ipykernel_7/3.py"), vars(tiny), "cell")
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
    with pytest.raises(UsageError, match=r"\(workload was '/.*/tiny.py:tiny', is '<tiny>'\)"):
        run_search(options(workload, tmp_path, study="alone"))


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
