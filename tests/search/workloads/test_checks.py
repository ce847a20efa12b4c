"""What is found out about a workload before anything is trained: shapes, metrics, splits, networks that are none."""

from __future__ import annotations

import math
import sys
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from search import Recipe, Workload
from search.errors import UsageError
from search.training.dense_model import build_model, dense_model
from search.training.scoring import predict
from search.workloads.metric_checks import try_metric

INPUTS = torch.randn(40, 3, 6, 6, generator=torch.Generator().manual_seed(0))
CLASSES = torch.arange(40) % 4
HALVES = (torch.arange(40) % 4 == 1).float()  # a quarter of them 1
SPLITS = ("fit", "calibration", "validation", "test")
RECIPE = Recipe(batch=10, dense_epochs=1)


class Net(nn.Module):
    """A convolution, and outputs of the shape asked for."""

    def __init__(self, outputs=4, shape=lambda y: y.mean((2, 3))):
        super().__init__()
        self.conv, self.shape = nn.Conv2d(3, outputs, 3, padding=1), shape

    def forward(self, x):
        return self.shape(self.conv(x))


def task(targets=CLASSES, net=Net, inputs=INPUTS, **changes) -> Workload:
    parts = dict.fromkeys(SPLITS, (inputs, targets))
    return Workload(**{"name": "task", "build_model": net, "recipe": RECIPE, **parts, **changes})


def scripted():
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`torch.jit", FutureWarning)
        return torch.jit.trace(Net(), INPUTS[:2])


def column(y):
    return y.mean((2, 3))[:, 0]


def squeezed(outputs, targets):
    return F.cross_entropy(outputs, targets.flatten().long())


def bce(outputs, targets):
    return F.binary_cross_entropy_with_logits(outputs, targets)


LOGITS, PIXELS = F.binary_cross_entropy_with_logits, INPUTS.argmax(1)
SCORED = {
    "class numbers": (task(), lambda o, t: o.argmax(1) == t),
    "a column of them": (task(CLASSES[:, None], loss=squeezed), lambda o, t: o.argmax(1) == t[:, 0]),
    "as floats": (task(CLASSES.float(), loss=squeezed), lambda o, t: o.argmax(1) == t),
    "one-hot": (task(F.one_hot(CLASSES).float()), lambda o, t: o.argmax(1) == t.argmax(1)),
    "soft": (task(F.one_hot(CLASSES) * 0.7 + 0.075), lambda o, t: o.argmax(1) == CLASSES),
    "segmentation": (task(PIXELS, lambda: Net(3, lambda y: y)), lambda o, t: o.argmax(1) == t),
    "a logit, a column": (task(HALVES[:, None], lambda: Net(1), loss=LOGITS), lambda o, t: (o > 0) == (t == 1)),
    "a logit without one": (
        task(HALVES, lambda: Net(1, column), loss=nn.BCEWithLogitsLoss()),
        lambda o, t: (o > 0) == t,
    ),
    "a probability": (
        task(HALVES, lambda: Net(1, lambda y: column(y).sigmoid()), loss=F.binary_cross_entropy),
        lambda o, t: (o > 0.5) == t,
    ),
    "binary segmentation": (
        task((INPUTS[:, :1] > 0.5).float(), lambda: Net(1, lambda y: y), loss=LOGITS),
        lambda o, t: (o > 0) == (t == 1),
    ),
    "one-hot under a binary loss": (
        task(F.one_hot(CLASSES).float(), loss=LOGITS),
        lambda o, t: o.argmax(1) == t.argmax(1),
    ),
}


@pytest.mark.parametrize("case", SCORED)
def test_the_default_metric_is_the_true_accuracy(case, tmp_path):
    workload, right = SCORED[case]
    dense = dense_model(workload, 0, tmp_path)
    outputs = predict(dense.model, INPUTS)
    own = float(right(outputs, workload.validation[1]).float().mean())
    assert dense.accuracy == pytest.approx(own, abs=1e-6)


def test_pixels_of_minus_100_are_not_counted(tmp_path):
    """As the default loss leaves them out of its mean."""
    targets = PIXELS.clone()
    targets[:, :2] = -100
    dense = dense_model(task(targets, lambda: Net(3, lambda y: y)), 0, tmp_path)
    right = predict(dense.model, INPUTS).argmax(1) == targets
    assert dense.accuracy == pytest.approx(float(right[:, 2:].float().mean()), abs=1e-6) and dense.accuracy > 0.1


class Extra(Net):
    def get_extra_state(self):
        return {"version": 3}

    def set_extra_state(self, state):
        self.given = state


class Complex(Net):
    def __init__(self):
        super().__init__()
        self.register_buffer("turn", torch.ones(3, dtype=torch.complex64))


REFUSED = {
    "targets as a column": (
        task(CLASSES[:, None]),
        "cross-entropy does not take targets of shape (40, 1): squeeze them, targets[:, 0]",
    ),
    "targets as floats": (task(CLASSES.float()), "of type torch.float32: pass targets.long()"),
    "targets of 32 bits": (task(CLASSES.int()), "of type torch.int32: pass targets.long()"),
    "one output, own metric": (
        task(net=lambda: Net(1), metric=lambda outputs, targets: 0.5),
        "and so is constant: give the workload a loss= of your own",
    ),
    "one output, own training and scores": (
        task(net=lambda: Net(1), train=lambda model, run: None, evaluate=lambda model, split, run: 0.5),
        "(2, 1) covers one class only, and so is constant; beside train= and evaluate=, loss= is what the scan and the "
        "learning rate look at on calibration data: give the workload a loss= of your own, or leave out "
        "calibration=",
    ),
    "a column, own training and scores": (
        task(CLASSES[:, None], train=lambda model, run: None, evaluate=lambda model, split, run: 0.5),
        "targets of shape (40, 1); beside train= and evaluate=, loss= is what the scan and the learning rate look at "
        "on calibration data: squeeze them, targets[:, 0], or leave out calibration=",
    ),
    "one output": (task(net=lambda: Net(1)), "outputs of shape (2, 1) covers one class only, and so is constant"),
    "no classes": (task(HALVES, lambda: Net(1, column)), "outputs of shape (2,) covers one class only"),
    "a logit of unknown loss": (
        task(HALVES[:, None], lambda: Net(1), loss=bce),
        "are one number each, not scores of classes",
    ),
    "regression": (
        task(HALVES * 0.3, lambda: Net(1, column), loss=F.mse_loss),
        "have no class dimension: give the workload a metric=",
    ),
    "several numbers": (
        task(INPUTS.mean((2, 3)), lambda: Net(3), loss=F.mse_loss),
        "not class probabilities that sum to 1",
    ),
    "several numbers, no loss": (task(INPUTS.mean((2, 3)), lambda: Net(3)), "not class probabilities that sum to 1"),
    "odd targets": (task(CLASSES + 0.25, loss=squeezed), "targets such as 0.25 are not class numbers"),
    "odd binary targets": (
        task(HALVES - 1, lambda: Net(1, column), loss=LOGITS),
        "targets such as -1 are neither 0 nor 1",
    ),
    "classes last": (
        task(
            CLASSES[:, None].repeat(1, 36),
            lambda: Net(4, lambda y: y.flatten(2).transpose(1, 2)),
            loss=lambda o, t: o.sum(),
        ),
        "targets of shape (40, 36) do not match outputs of shape (2, 36, 4)",
    ),
    "a void class": (
        task(
            PIXELS.where(PIXELS > 0, 255),
            lambda: Net(3, lambda y: y),
            loss=lambda o, t: F.cross_entropy(o, t, ignore_index=255),
        ),
        "target 255 is not a class of outputs of shape (2, 3, 6, 6): class numbers go from 0 to 2",
    ),
    "a dict": (
        task(net=lambda: Net(4, lambda y: {"out": y.mean((2, 3))})),
        "returns a dict of out (2, 4), not a single tensor: give the workload a loss= and a metric=",
    ),
    "a tuple, own loss": (
        task(net=lambda: Net(4, lambda y: (y.mean((2, 3)), y)), loss=lambda o, t: F.cross_entropy(o[0], t)),
        "returns a tuple of (2, 4), (2, 4, 6, 6), not a single tensor: give the workload a metric=",
    ),
    "no tensor": (
        task(net=lambda: Net(4, lambda y: {"out": None})),
        "returns a dict of out NoneType, which holds no tensor",
    ),
    "loss of every example": (
        task(loss=lambda o, t: F.cross_entropy(o, t, reduction="none")),
        "one of shape (8,): take the mean over examples",
    ),
    "loss that is a number": (task(loss=lambda o, t: 0.25), "must be a tensor of one number, got a float"),
    "loss without gradient": (task(loss=lambda o, t: (o.argmax(1) != t).float().mean()), "its loss has no gradient"),
    "loss that broadcasts": (
        task(HALVES * 0.3, lambda: Net(1), loss=F.mse_loss, metric=lambda o, t: 0.25),
        "compares every output with every target",
    ),
    "loss that leaves": (task(loss=lambda o, t: sys.exit(3)), "raised sys.exit(3)"),
    "loss that ends a generator": (
        task(loss=lambda o, t: (_ for _ in ()).throw(GeneratorExit)),
        "raised GeneratorExit",
    ),
    "network that leaves": (task(net=lambda: Net(4, lambda y: sys.exit(0))), "raised sys.exit(0)"),
    "network that recurses": (task(net=lambda: Net(4, lambda y: (f := lambda: f())())), "raised RecursionError"),
    "no network": (task(net=dict), "build_model must return a torch.nn.Module, got a dict"),
    "scripted": (task(net=scripted), "scripted network"),
    "lazy": (task(net=lambda: nn.Sequential(nn.Flatten(), nn.LazyLinear(4))), "'1.weight' of the network is lazy"),
    "extra state": (task(net=lambda: Extra()), "state dict entry '_extra_state' is a dict, no tensor"),
    "complex buffer": (task(net=lambda: Complex()), "tensor 'turn' has type torch.complex64"),
    "on meta": (task(net=lambda: Net().to("meta")), "'conv.weight' of the network is on the device meta"),
    "no parameters": (task(net=lambda: nn.Flatten()), "the network has no parameters"),
    "all frozen": (task(net=lambda: Net().requires_grad_(False)), "all parameters of the network are frozen"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_scored_or_trained_is_refused_in_one_line(case):
    workload, said = REFUSED[case]
    with pytest.raises(UsageError) as raised:
        build_model(workload, 0)
    text = str(raised.value)
    assert said in text and text.startswith("workload 'task': ") and "\n" not in text, text


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("own", [False, True], ids=["default", "own loss and metric"])
@pytest.mark.parametrize("label", [9, -1])
def test_one_wrong_label_in_any_split_is_found_before_training(split, own, label):
    wrong = CLASSES.clone()
    wrong[21] = label
    changes = {"loss": lambda o, t: F.cross_entropy(o, t), "metric": lambda o, t: 0.25} if own else {}
    with pytest.raises(UsageError, match=f"split '{split}'.*{label}") as raised:
        build_model(task(**{split: (INPUTS, wrong)}, **changes), 0)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("split", ["calibration", "validation", "test"])
@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        (INPUTS.double(), "inputs of type torch.float64, split 'fit' of torch.float32"),
        (INPUTS[:, :2], "the network on inputs of shape (8, 2, 6, 6) raised RuntimeError"),
        (torch.where(torch.arange(40)[:, None, None, None] == 33, torch.nan, INPUTS), "holds NaN or infinite inputs"),
    ],
    ids=["dtype", "channels", "nan"],
)
def test_inputs_that_do_not_fit_are_found_in_any_split(split, inputs, said):
    with pytest.raises(UsageError) as raised:
        build_model(task(**{split: (inputs, CLASSES)}), 0)
    assert f"split {split!r}" in str(raised.value) and said in str(raised.value)


def correlation(outputs, targets):
    return float(torch.corrcoef(torch.stack([outputs, targets]))[0, 1].clamp_min(0))


def needs_both_classes(outputs, targets):
    predicted = outputs > 0
    if len(set(predicted.tolist())) < 2:
        raise ValueError("only one class predicted")
    return float((predicted == (targets > 0)).float().mean())


class Constant(Net):
    """Outputs that are all alike until it is trained."""

    def __init__(self):
        super().__init__(1, column)
        nn.init.zeros_(self.conv.weight)


@pytest.mark.parametrize("metric", [correlation, needs_both_classes])
def test_a_metric_undefined_for_an_untrained_network_only_is_taken(metric, tmp_path):
    targets = INPUTS.mean((1, 2, 3))
    targets = targets - targets.mean()
    changes = {"loss": F.mse_loss, "recipe": Recipe(batch=10, dense_epochs=8, dense_learning_rate=0.1)}
    dense = dense_model(task(targets, Constant, metric=metric, **changes), 0, tmp_path)
    assert 0.5 < dense.accuracy == pytest.approx(metric(predict(dense.model, INPUTS), targets))


def of_right_outputs(outputs, targets):
    told = outputs["out"].squeeze(-1)
    right = told == targets if told.shape == targets.shape else told.argmax(1) == targets
    return 0.25 if right.all() and outputs["places"].equal(torch.arange(40)) and outputs["scale"] == 3 else math.nan


def of_other_outputs(outputs, targets):
    return 0.25 if len(outputs["out"].unique()) == outputs["out"].numel() else math.nan


@pytest.mark.parametrize("metric", [of_right_outputs, of_other_outputs])
@pytest.mark.parametrize(
    ("shape", "targets"),
    [((40,), HALVES), ((40, 1), HALVES), ((40, 4), CLASSES), ((40, 3, 6, 6), PIXELS), ((40, 3), INPUTS.mean((2, 3)))],
)
def test_a_metric_is_tried_on_random_and_on_right_outputs(metric, shape, targets):
    outputs = {"out": torch.zeros(shape), "places": torch.arange(40), "scale": torch.tensor(3.0)}
    if metric is of_other_outputs:
        del outputs["scale"]
    try_metric(task(targets, metric=metric), outputs, targets, "validation")


def test_of_a_metric_never_defined_the_untrained_networks_outputs_are_told():
    seen = iter(["first", "second", "third"])
    with pytest.raises(
        UsageError, match=r"untrained network on test data.*KeyError: 'first'.*random outputs and correct ones"
    ):
        try_metric(task(metric=lambda o, t: {}[next(seen)]), torch.zeros(40, 4), CLASSES, "test")


def test_a_metric_undefined_for_the_trained_network_is_refused(tmp_path):
    recipe = Recipe(batch=10, dense_epochs=1, dense_learning_rate=1e-9)
    workload = task(INPUTS.mean((1, 2, 3)), Constant, metric=needs_both_classes, loss=F.mse_loss, recipe=recipe)
    with pytest.raises(UsageError, match=r"metric of the dense model on validation data.*only one class predicted"):
        dense_model(workload, 0, tmp_path)


def test_a_metric_of_another_shape_is_refused_before_training():
    wrong = task(metric=lambda o, t: float((o[:, 7] > 0).float().mean()))
    with pytest.raises(UsageError, match=r"IndexError.*random outputs and correct ones give no share either"):
        build_model(wrong, 0)


def test_a_metric_that_a_test_split_cannot_have_is_found_before_training():
    def both(outputs, targets):
        if len(set(targets.tolist())) < 2:
            raise ValueError("only one class present")
        return 0.25

    with pytest.raises(UsageError, match=r"on test data.*only one class present"):
        build_model(task(metric=both, test=(INPUTS[:5], CLASSES[:5] * 0)), 0)


class Leaving(Net):
    """A network that does something else once it is trained."""

    def __init__(self, then):
        super().__init__()
        self.then = then

    def forward(self, x):
        if self.training:
            self.then()
        return super().forward(x)


@pytest.mark.parametrize(
    ("then", "said"),
    [
        (lambda: sys.exit(0), r"sys.exit\(0\)"),
        (lambda: {}["k"], "KeyError: 'k'"),
        (lambda: (f := lambda: f())(), "Recursion"),
    ],
)
def test_what_the_users_code_raises_in_dense_training_is_one_line(then, said, tmp_path):
    with pytest.raises(UsageError, match=f"training the dense model of 'task' raised {said}") as raised:
        dense_model(task(net=lambda: Leaving(then)), 0, tmp_path)
    assert "\n" not in str(raised.value) and not list(tmp_path.glob("*.safetensors"))


def test_weights_whose_network_gives_nan_are_named(tmp_path):
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    net[1].running_var[2] = -1.0
    torch.save(net.state_dict(), tmp_path / "negative.pt")
    with pytest.raises(UsageError, match=r"NaN.*'1.running_var' holds -1") as raised:
        dense_model(task(net=lambda: nn.Sequential(*map(type_of, net))), 0, tmp_path, tmp_path / "negative.pt")
    assert "negative.pt" in str(raised.value)
    net[1].running_var[2] = 1.0
    net[0].weight.data *= 1e38
    net[1].weight.data *= 1e38
    net[1].bias.data *= -1e38
    torch.save(net.state_dict(), tmp_path / "large.pt")
    with pytest.raises(UsageError, match=r"large\.pt"):
        dense_model(task(net=lambda: nn.Sequential(*map(type_of, net))), 0, tmp_path, tmp_path / "large.pt")


def type_of(module):
    return {nn.Conv2d: lambda: nn.Conv2d(3, 4, 3), nn.BatchNorm2d: lambda: nn.BatchNorm2d(4)}.get(
        type(module), lambda: module
    )()
