"""Another network in a workload's place, and weights that training begins with."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from cifar_files import write_cifar
from safetensors.torch import save_file
from torch import nn
from torchvision import models
from watchers import Notes

from search import SearchConfig
from search.config import ConfigError
from search.errors import EnvironmentProblem, Refused, UsageError
from search.results.resume import resume_command
from search.store.study_record import new_record, resumed_config
from search.training.dense_model import dense_model
from search.workloads import get_workload
from search.workloads.choices import network_alone

SMALL = "torchvision:squeezenet1_1"
OTHERS = """
import torch
from torch import nn
from search import Recipe, Workload


def made(network="own", inputs=(3, 24, 24), outputs=4, **changes):
    torch.manual_seed(0)
    x, y = torch.randn(12, *inputs), torch.arange(12) % outputs
    model = lambda: nn.Sequential(nn.Flatten(), nn.Linear(x[0].numel(), outputs))
    return Workload(**{"name": network, "build_model": model, **dict.fromkeys(SPLITS, (x, y)), **changes})


SPLITS = ("fit", "calibration", "validation", "test")


def images(data=None):
    return made("images")


def rows():
    return made("rows", inputs=(5,))


def several():
    class Several(nn.Linear):
        def forward(self, x):
            return {"out": super().forward(x.flatten(1))}

    loss = lambda outputs, targets: nn.functional.cross_entropy(outputs["out"], targets)
    return made("several", build_model=lambda: Several(3 * 24 * 24, 4), loss=loss, metric=lambda *_: 0.5)


def with_weights():
    return made("weighty", weights="mine.pt")
"""


@pytest.fixture(scope="module")
def others(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("others") / "others.py"
    path.write_text(OTHERS)
    return path


def test_a_network_is_built_for_the_classes_and_images_of_the_data(others):
    found = get_workload(f"{others}:images", network=SMALL)
    own = get_workload(f"{others}:images")
    assert found.name == "images-squeezenet1_1" and torch.equal(found.fit[0], own.fit[0])
    assert found.build_model()(found.example_input).shape == (2, 4)
    digits = get_workload("digits", network=SMALL)
    assert digits.recipe == get_workload("digits").recipe
    first, last = (digits.build_model().get_parameter(name) for name in ("features.0.weight", "classifier.1.weight"))
    assert first.shape[1] == 1 and last.shape[0] == 10


def test_a_factory_with_a_network_of_its_own_is_given_it(others):
    assert get_workload(f"{others}:made", network="small").name == "small"


REFUSED = {
    "no such network": (
        "images", {"network": "torchvision:squeezenet1_2", "data": "absent"}, "of 86 are torchvision:squeezenet1_1"
    ),
    "no library": ("images", {"network": "squeezenet"}, "must be named as torchvision:NAME or timm:NAME"),
    "no images": ("rows", {"network": SMALL}, "takes images .*got a tensor of shape (2, 5)"),
    "no classifier": ("several", {"network": SMALL}, "takes the place of a classifier (n, classes), got a dict"),
    "weights of its own": ("with_weights", {"pretrained": "FILE"}, "names weights of its own, 'mine.pt'"),
    "cache of nothing": ("images", {"pretrained": "cache"}, "--pretrained cache needs weights that are published"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_chosen_is_told_in_one_line(case, others, tmp_path):
    factory, options, said = REFUSED[case]
    options = {key: str(tmp_path / "w.pt") if value == "FILE" else value for key, value in options.items()}
    with pytest.raises(UsageError) as raised:
        get_workload(f"{others}:{factory}", **options)
    assert all(part in str(raised.value) for part in said.split(".*")) and "\n" not in str(raised.value)


def test_a_width_beside_a_network_is_refused():
    with pytest.raises(UsageError, match="width is of the network that torchvision:squeezenet1_1 takes the place of"):
        get_workload("digits", network=SMALL, width=0.25)


def test_a_network_alone_is_no_workload():
    with pytest.raises(UsageError, match=r"'torchvision:resnet18' is a network without data, .* give it as --network"):
        get_workload("torchvision:resnet18")


def test_an_output_layer_of_another_size_begins_anew(others, tmp_path, caplog):
    torch.manual_seed(9)
    published = models.squeezenet1_1(num_classes=50)
    save_file(published.state_dict(), tmp_path / "fifty.safetensors")
    spec = f"{others}:images"
    found = get_workload(spec, network=SMALL, pretrained=str(tmp_path / "fifty.safetensors"))
    assert "have nothing for classifier.1.weight, classifier.1.bias" in caplog.text
    models_of = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        models_of.append(found.build_model().state_dict())
    heads = [state["classifier.1.weight"] for state in models_of]
    assert heads[0].shape == (4, 512, 1, 1) and not torch.equal(*heads)
    for name, tensor in published.state_dict().items():
        assert name.startswith("classifier") or all(torch.equal(state[name], tensor) for state in models_of)


def test_published_weights_come_from_the_library_s_own_place(others, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    spec = f"{others}:images"
    with pytest.raises(EnvironmentProblem, match=r"squeezenet1_1-b8a52dc0\.pth"):
        get_workload(spec, network=SMALL, pretrained="cache")
    torch.manual_seed(9)
    published = models.squeezenet1_1().state_dict()
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    torch.save(published, tmp_path / "hub" / "checkpoints" / "squeezenet1_1-b8a52dc0.pth")
    found = get_workload(spec, network=SMALL, pretrained="cache").build_model().state_dict()
    assert torch.equal(found["features.0.weight"], published["features.0.weight"])


def test_weights_of_another_network_are_not_begun_with(others, tmp_path):
    torch.save(models.squeezenet1_0(num_classes=4).state_dict(), tmp_path / "other.pth")
    with pytest.raises(UsageError, match=r"other\.pth do not fit: .*; they are those of torchvision:squeezenet1_0$"):
        get_workload(f"{others}:images", network=SMALL, pretrained=str(tmp_path / "other.pth"))
    with pytest.raises(EnvironmentProblem, match=r"no weights file .*--pretrained"):
        get_workload(f"{others}:images", network=SMALL, pretrained="absent.pth")


def test_whole_weights_that_do_the_task_are_the_dense_model(place, tmp_path):
    """The file of a trained network is taken; with its last layer drawn anew, the rest of it begins a training."""
    spec, notes = f"{place / 'tiny.py'}:tiny", Notes()
    trained = dense_model(get_workload(spec), 3, tmp_path / "cache").model
    torch.save(trained.state_dict(), tmp_path / "trained.pt")
    begun = get_workload(spec, pretrained=str(tmp_path / "trained.pt"))
    found = dense_model(begun, 0, tmp_path / "other", None, notes)
    assert "they do the task: they are taken as the dense model" in notes.notes[0] and found.trained_seconds == 0
    assert all(torch.equal(a, b) for a, b in zip(found.model.parameters(), trained.parameters(), strict=True))
    state = trained.state_dict() | {"classifier.weight": torch.ones(7, 16), "classifier.bias": torch.ones(7)}
    torch.save(state, tmp_path / "seven.pt")
    again = dense_model(get_workload(spec, pretrained=str(tmp_path / "seven.pt")), 0, tmp_path / "other")
    fresh = dense_model(get_workload(spec), 0, tmp_path / "other")
    assert again.trained_seconds > 0 and fresh.trained_seconds > 0 and again.weights != fresh.weights


def test_options_of_a_study_that_begins_with_weights():
    with pytest.raises(ConfigError, match=r"weights 'a\.pt' are the trained network, and pretrained 'cache'"):
        SearchConfig(weights="a.pt", pretrained="cache")
    config = SearchConfig(
        workload="cifar10", network=SMALL, pretrained="hub:a/b:c", trust_remote_code=True, root="here"
    )
    record = new_record(config, {})
    assert "trust_remote_code" not in record["config"] and record["config"]["network"] == SMALL
    for trusted in (True, False):  # asked for each time
        again = SearchConfig(workload="cifar10", trust_remote_code=trusted, root="here")
        assert resumed_config(again, record, "mine") == config.model_copy(update={"trust_remote_code": trusted})
    with pytest.raises(UsageError, match="network was 'torchvision:squeezenet1_1', is 'timm:resnet18'"):
        resumed_config(SearchConfig(network="timm:resnet18"), record, "mine")
    words = f"prunefront search --workload cifar10 --network {SMALL} --pretrained hub:a/b:c --root here"
    assert resume_command(resumed_config(SearchConfig(root="here"), record, "mine")) == words


def test_a_network_alone_is_inspected(main, place, tmp_path):
    done = main("inspect", SMALL, "--json", "--root", tmp_path)
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert found["workload"] == "squeezenet1_1" and found["parameters"] == 1_235_496
    for words, said in (
        (["--data", "x"], "--data has no effect on torchvision:squeezenet1_1, a network alone"),
        (["--pictures", str(tmp_path / "p")], "a network alone has not: give --weights or --pretrained"),
        (["--pretrained", "cache"], "--pretrained has no effect without --pictures"),
    ):
        refused = main("inspect", SMALL, *words, "--root", tmp_path)
        assert refused.code == 2 and said in refused.err and refused.err.count("\n") == 1, refused.err
    refused = main("inspect", "torchvision:squeezenet", "--root", tmp_path)
    assert refused.code == 2 and "the nearest of 86 are torchvision:squeezenet1_" in refused.err


def test_a_network_alone_has_the_weights_it_is_given(tmp_path):
    torch.manual_seed(9)
    published = models.squeezenet1_1()
    torch.save(published.state_dict(), tmp_path / "w.pth")
    found = network_alone(SMALL, str(tmp_path / "w.pth"), tmp_path, trusted=False)
    assert found.weights == "as built" and found.example_input.shape == (2, 3, 224, 224)
    assert all(torch.equal(a, b) for a, b in zip(found.build_model().parameters(), published.parameters(), strict=True))


@pytest.mark.slow
def test_an_export_of_another_network_is_verified(main, tmp_path):
    """A manifest's network is taken if it is torchvision's and of ordinary size."""
    data, out, root = (["--data", tmp_path / "data"], tmp_path / "out", ["--root", tmp_path / "root"])
    write_cifar(tmp_path / "data")
    workload = get_workload("cifar10", data=tmp_path / "data", network=SMALL)
    torch.save(workload.build_model().state_dict(), tmp_path / "w.pt")
    (tmp_path / "sparsity.json").write_text('{"features.3.squeeze.weight": 0.5}')
    done = main("apply", tmp_path / "sparsity.json", "--workload", "cifar10", "--network", SMALL, *data, "--weights",
                tmp_path / "w.pt", "--schedule", "one-shot", "--out", out, *root)  # fmt: skip
    assert done.code == 0, done.err
    checked = main("verify", out, *data, *root)
    assert checked.code == 0, checked.out + checked.err
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["workload"]["network"] == SMALL
    refusals = {"torchvision:regnet_y_128gf": "none but torchvision's of up to 100,000,000", 5: "names network 5"}
    for other, said in refusals.items():
        manifest["workload"]["network"] = other
        (out / "manifest.json").write_text(json.dumps(manifest))
        refused = main("verify", out, *data, *root)
        assert refused.code == 2 and said in refused.err and "give it yourself with --network" in refused.err
    assert main("verify", out, "--network", SMALL, *data, *root).code == 0


def test_the_network_that_trains_is_the_one_that_was_named(others):
    found = get_workload(f"{others}:images", network=SMALL).build_model()
    assert isinstance(found, models.SqueezeNet) and isinstance(found, nn.Module)
    with pytest.raises(Refused):
        get_workload(f"{others}:images", pretrained="hub:a/b:c")
