"""Training loops of the user's own: what they are given, what holds in them, and what is refused after them."""

from __future__ import annotations

import random
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from pruning.channels.tracing import trace_channels
from search.errors import UsageError
from search.placement import Placement
from search.training.dense_model import dense_model
from search.training.evaluate import PreparedModel, evaluate_policy
from search.training.fingerprint import weights_fingerprint
from search.workloads import get_workload
from search.workloads.recipe import one_cycle
from spaces.policy import PruningPolicy
from spaces.schedule import Schedule

LAYERS = ("conv0.weight", "conv1.weight", "classifier.weight")
CONVS = LAYERS[:2]
RAMP = Schedule("polynomial", 3, ramp=0.6)
SEED = 3
STEPS = 20  # of one epoch


def fine(share: float = 0.7, **more) -> PruningPolicy:
    return PruningPolicy(dict.fromkeys(LAYERS, share), "fine-grained", **{"schedule": Schedule("one-shot"), **more})


@pytest.fixture(scope="module")
def tiny(place):
    return get_workload(f"{place / 'tiny.py'}:tiny")


@pytest.fixture(scope="module")
def dense(tiny):
    torch.manual_seed(1)
    return tiny.build_model()


def evaluated(workload, dense, policy, epochs=1.0, **more):
    prepared = PreparedModel(workload, dense, trace_channels(dense, workload.example_input))
    return evaluate_policy(prepared, policy, epochs, SEED, **more)


def by(workload, dense, train, policy=None, **more):
    """The evaluation of a policy by a training loop."""
    return evaluated(replace(workload, train=train), dense, policy or fine(), **more)


def loss_of(model, batch):
    return nn.functional.cross_entropy(model(batch[0]).float(), batch[1])


def ours(model, run):
    """The loop of the project, as a user would write it."""
    optimizer = torch.optim.SGD(model.parameters(), 0.0, 0.9, weight_decay=5e-4, nesterov=True)
    for step, batch in enumerate(run.loader("fit")):
        model.train()
        for group in optimizer.param_groups:
            group["lr"] = one_cycle(step, run.steps, run.learning_rate, 0.2)
        loss = loss_of(model, batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        run.report(loss)


@pytest.mark.parametrize(
    "policy",
    [
        fine(),
        fine(schedule=RAMP),
        fine(bits=2, schedule=RAMP),
        PruningPolicy(dict.fromkeys(CONVS, 0.4), "channel", schedule=Schedule("one-shot")),
    ],
    ids=["one-shot", "ramp", "2 bits on a ramp", "channels"],
)
def test_the_projects_own_loop_written_by_a_user_gives_the_same_network(tiny, dense, policy):
    mine, theirs = (evaluated(one, dense, policy) for one in (tiny, replace(tiny, train=ours)))
    assert theirs.result.reason is None
    assert weights_fingerprint(mine.model) == weights_fingerprint(theirs.model)
    assert mine.result.measured == theirs.result.measured
    assert mine.result.curve == theirs.result.curve
    assert theirs.result.restored == 0


def sgd(model):
    return torch.optim.SGD(model.parameters(), 0.02, momentum=0.9, weight_decay=1e-3)


def plainly(model, run, make=sgd, every=1, half=False, watched=None):
    """Steps by any optimizer; `watched` is called with the model after each."""
    optimizer, scaler = make(model), torch.amp.GradScaler("cpu", enabled=half)
    for number, batch in enumerate(run.loader("fit"), 1):
        with torch.autocast("cpu", torch.bfloat16) if half else nullcontext():
            loss = loss_of(model, batch)
        scaler.scale(loss).backward()
        if number % every == 0:
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
        if watched:
            watched(model)


def by_closure(model, run, make=lambda model: torch.optim.LBFGS(model.parameters(), 0.01, max_iter=2), watched=None):
    optimizer = make(model)
    for batch in run.loader("fit"):

        def closure(batch=batch):
            optimizer.zero_grad()
            loss = loss_of(model, batch)
            loss.backward()
            return loss

        optimizer.step(closure)
        if watched:
            watched(model)


def by_two(model, run, watched=None):
    first = torch.optim.SGD([*model.conv0.parameters(), *model.bn0.parameters()], 0.02)
    rest = torch.optim.Adam([*model.conv1.parameters(), *model.bn1.parameters(), *model.classifier.parameters()])
    for batch in run.loader("fit"):
        loss_of(model, batch).backward()
        for optimizer in (first, rest):
            optimizer.step()
            optimizer.zero_grad()
        if watched:
            watched(model)


LOOPS = {
    "momentum": plainly,
    "adamw": lambda *given, **more: plainly(*given, lambda model: torch.optim.AdamW(model.parameters(), 1e-2), **more),
    "fused": lambda *given, **more: plainly(
        *given, lambda model: torch.optim.AdamW(model.parameters(), 1e-2, fused=True), **more
    ),
    "accumulated": lambda *given, **more: plainly(*given, every=4, **more),
    "bf16 and a scaler": lambda *given, **more: plainly(*given, half=True, **more),
    "lbfgs": by_closure,
    "two optimizers": by_two,
}


@pytest.mark.parametrize("loop", LOOPS.values(), ids=LOOPS)
def test_masks_hold_after_every_step_of_any_loop(tiny, dense, loop):
    broken = []

    def train(model, run):
        gone = {name: model.get_parameter(name) == 0 for name in LAYERS}
        assert all(0.65 < float(one.float().mean()) < 0.75 for one in gone.values())

        def watched(model):
            broken.append(sum(int((model.get_parameter(name)[one] != 0).sum()) for name, one in gone.items()))

        loop(model, run, watched=watched)

    found = by(tiny, dense, train).result
    assert found.reason is None
    assert broken == [0] * STEPS
    assert found.restored == 0


@pytest.mark.parametrize("loop", LOOPS.values(), ids=LOOPS)
def test_a_ramp_follows_the_batches_of_any_loop(tiny, dense, loop):
    shares = []

    def train(model, run):
        loop(model, run, watched=lambda model: shares.append(float((model.conv1.weight == 0).float().mean())))

    assert by(tiny, dense, train, fine(schedule=Schedule("polynomial", 1, ramp=0.8))).result.reason is None
    assert shares == sorted(shares)
    assert shares[7] == pytest.approx(0.7 * 8 / 16, abs=0.01)
    assert shares[14] < 0.69 and shares[-1] == pytest.approx(0.7, abs=0.01)


@pytest.mark.parametrize("kind", ["channel", "both"])
def test_channels_of_a_ramp_leave_after_the_loop(tiny, dense, kind):
    removal = dict.fromkeys(CONVS, 0.5)
    policy = (
        PruningPolicy(removal, "channel", schedule=RAMP)
        if kind == "channel"
        else PruningPolicy(dict.fromkeys(CONVS, 0.6), "fine-grained", removal=removal, schedule=RAMP)
    )
    seen = []

    def train(model, run):
        plainly(model, run, watched=lambda model: seen.append((model.conv1.weight == 0).all(dim=(1, 2, 3)).sum()))
        assert model.conv1.weight.shape[0] == 16

    found = by(tiny, dense, train, policy)
    assert found.result.reason is None
    assert int(seen[0]) < 4 and int(seen[-1]) >= 8
    assert found.model.conv1.weight.shape[0] == 8
    assert found.result.measured.shares.macs < 0.6


def seen_values(model):
    """The most distinct sizes of weights that an output channel of a layer has."""
    return max(len(row.abs().unique()) for row in model.conv1.weight.detach().flatten(1))


@pytest.mark.parametrize("loop", [plainly, by_closure, by_two])
def test_the_last_half_sees_weights_of_few_bits_rounded(tiny, dense, loop):
    seen = {step: [] for step in range(STEPS + 1)}
    stepped = []

    def train(model, run):
        done = []
        hook = model.conv1.register_forward_pre_hook(lambda *_: seen[len(done)].append(seen_values(model)))
        own = torch.optim.SGD(model.parameters(), 0.1)
        own.register_step_pre_hook(lambda *_: stepped.append(seen_values(model)))
        made = {"make": lambda model: own} if loop is plainly else {}
        loop(model, run, watched=done.append, **made)
        hook.remove()

    assert by(tiny, dense, train, fine(0.0, bits=2)).result.reason is None
    assert all(seen[step] and min(seen[step]) > 10 for step in range(STEPS // 2))
    assert all(seen[step] and max(seen[step]) <= 2 for step in range(STEPS // 2, STEPS))
    assert loop is not plainly or (len(stepped) == STEPS and min(stepped) > 10)


def ending(after, loaded=None):
    """A loop that ends after so many of its steps, and loads the weights that it had after an earlier one."""

    def train(model, run):
        kept = []
        some = replace(run, _loader=lambda split: islice(run.loader(split), after))
        plainly(model, some, watched=lambda model: kept.append(deepcopy(model.state_dict())))
        if loaded:
            model.load_state_dict(kept[loaded - 1])

    return train


@pytest.mark.parametrize("after", [15, 20], ids=["while it sees rounded weights", "at its end"])
def test_weights_that_the_loop_loads_last_are_the_ones_that_count(tiny, dense, after):
    found, stopped, other = (by(tiny, dense, ending(*one), fine(bits=3)) for one in ((after, 5), (5,), (after,)))
    assert found.result.reason is None and found.result.restored == 0
    assert weights_fingerprint(found.model) == weights_fingerprint(stopped.model)
    assert weights_fingerprint(found.model) != weights_fingerprint(other.model)


@pytest.mark.parametrize(
    ("policy", "after", "share"),
    [
        (fine(schedule=RAMP), 7, 0.35),
        (fine(schedule=RAMP), 13, None),
        (fine(schedule=Schedule("polynomial", 3, ramp=1.0)), 20, None),
        (fine(bits=3), 10, 0.5),
        (fine(bits=3), 11, None),
        (fine(), 2, None),
    ],
    ids=["on the ramp", "after it", "with it", "before rounding", "while rounding", "one-shot"],
)
def test_a_loop_that_ends_before_its_schedule_is_told(tiny, dense, policy, after, share):
    found = by(tiny, dense, ending(after), policy)
    assert found.result.reason is None and found.result.ended_at == share
    assert found.result.achieved["conv1.weight"] > 0.69


def test_an_average_that_is_returned_is_pruned(tiny, dense):
    made = {}

    def train(model, run):
        average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
        plainly(model, run, watched=average.update_parameters)
        made["average"] = average.module
        return average.module

    found = by(tiny, dense, train, fine(schedule=RAMP))
    assert found.model is made["average"]
    assert found.result.restored > 100
    assert all(share == pytest.approx(0.7, abs=0.01) for share in found.result.achieved.values())
    assert by(tiny, dense, train, fine()).result.restored == 0


def test_what_a_run_says(tiny, dense):
    told, drawn = [], {}

    def train(model, run):
        told.append((run.stage, run.epochs, run.steps, run.seed, run.batch, run.device.type, run.precision))
        drawn[run.seed] = (torch.rand(()), np.random.rand(), random.random())
        assert 0 < run.learning_rate <= tiny.recipe.learning_rate
        assert run.settled == (run.stage == "dense")
        plainly(model, run)
        assert run.settled

    workload = replace(tiny, train=train, placement=Placement(precision="bf16"))
    torch.manual_seed(11)
    before = torch.random.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    by(workload, dense, train, fine(schedule=RAMP))
    by(workload, dense, train, fine(schedule=RAMP), epochs=2.5, stage="final")
    assert told == [("trial", 1.0, 20, SEED, 20, "cpu", "bf16"), ("final", 2.5, 50, SEED, 20, "cpu", "bf16")]
    after = torch.random.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    assert torch.equal(before[0], after[0]) and before[1:] == after[1:]
    torch.manual_seed(SEED)
    assert drawn[SEED][0] == torch.rand(())
    assert drawn[SEED][2] == random.Random(SEED).random()


def test_the_teacher_is_the_dense_network_frozen(tiny, dense, tmp_path):
    def train(model, run):
        teacher = run.teacher
        assert teacher is run.teacher and not teacher.training
        assert weights_fingerprint(teacher) == weights_fingerprint(dense) != weights_fingerprint(model)
        assert not any(parameter.requires_grad for parameter in teacher.parameters())
        plainly(model, run)

    assert by(tiny, dense, train).result.reason is None
    with pytest.raises(UsageError, match=r"run\.teacher is the dense network, and it is being trained"):
        dense_model(replace(tiny, train=lambda model, run: run.teacher), 0, tmp_path)


def test_a_loop_without_our_data_says_how_long_it_is(tiny, dense, tmp_path):
    inputs, targets = tiny.fit
    alone = replace(tiny, fit=None, train=plainly)
    shares = {}

    def loop(model, run, before, steps=10):
        found = shares[before] = []
        parts = [[*model.classifier.parameters()], [*model.conv0.parameters(), *model.conv1.parameters()]]
        optimizers = [torch.optim.SGD(part, 0.02) for part in parts]
        for number in range(steps):
            if before == "progress":
                run.progress(number / steps)
            loss_of(model, (inputs[:40], targets[:40])).backward()
            for optimizer in optimizers:  # which take turns, and count as one
                optimizer.step()
            found.append(round(float((model.conv1.weight == 0).float().mean()), 2))

    def begun(model, run):
        assert run.steps is None
        run.begin(10)
        assert run.steps == 10
        loop(model, run, "begin")

    policy = fine(schedule=Schedule("polynomial", 1, ramp=0.5))
    assert by(alone, dense, begun, policy).result.reason is None
    assert by(alone, dense, lambda *given: loop(*given, "progress"), policy).result.reason is None
    assert shares["begin"] == [0.14, 0.28, 0.42, 0.56, 0.7, 0.7, 0.7, 0.7, 0.7, 0.7]
    assert shares["progress"] == [0.0, 0.14, 0.28, 0.42, 0.56, 0.7, 0.7, 0.7, 0.7, 0.7]
    found = by(alone, dense, lambda *given: loop(*given, "nothing"), policy).result
    assert found.reason.startswith("error: nobody says how long the training is")
    with pytest.raises(UsageError, match=r"^nobody says how long the training is, which schedules depend on: let "):
        dense_model(replace(alone, train=lambda *given: loop(*given, "nothing", steps=1)), 0, tmp_path)
    assert len(shares["nothing"]) == 0  # told at the first step


def test_a_step_by_hand_counts_and_holds(tiny, dense):
    shares = []

    def train(model, run):
        for batch in run.loader("fit"):
            loss_of(model, batch).backward()
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.sub_(0.01 * parameter.grad)
                    parameter.grad = None
            run.hold()
            shares.append(float((model.conv1.weight == 0).float().mean()))

    assert by(tiny, dense, train).result.reason is None
    assert min(shares) > 0.69
    found = by(tiny, dense, lambda model, run: train(model, replace(run, _loop=_Deaf())))
    assert "after each step of another kind of optimizer, call run.hold()" in found.result.reason


class _Deaf:
    def hold(self): ...


def loads_others(model, run):
    plainly(model, run)
    torch.manual_seed(8)
    model.load_state_dict(type(model)().state_dict())


def renames(model, run):
    plainly(model, run)
    nn.utils.parametrizations.weight_norm(model.classifier)


def lost(model, run):
    plainly(model, run)
    model.bn1.running_mean = None


def cuts(model, run):
    plainly(model, run)
    model.conv1.weight = nn.Parameter(model.conv1.weight[:8].detach())


def breaks(model, run):
    plainly(model, run)
    with torch.no_grad():
        model.bn1.bias[3] = float("inf")


def steps_by(rate):
    return lambda model, run: plainly(model, run, lambda model: torch.optim.SGD(model.parameters(), rate))


def late(model, run):
    plainly(model, run)
    run.begin(7)


FAULTS = {
    "no step": (
        lambda model, run: None,
        "error: train() took no step of 20 by a torch.optim.Optimizer that holds a parameter of the network: make the",
    ),
    "a foreign network": (
        lambda model, run: plainly(deepcopy(model), run),
        "error: train() took no step of 20 by a torch.optim.Optimizer that holds a parameter",
    ),
    "no rate": (steps_by(0.0), "error: train() took 20 optimizer steps, and no parameter moved"),
    "other weights": (loads_others, "error: train() ended with other weights than it trained: "),
    "other names": (
        renames,
        "error: train() changed names in the network: 'classifier.parametrizations.weight.original0' is new and "
        "'classifier.weight' is gone (2 and 1 in all); train it as it is",
    ),
    "without a name": (
        lost,
        "error: train() changed names in the network: 'bn1.running_mean' is gone (0 and 1 in",
    ),
    "wrapped": (
        lambda model, run: (plainly(model, run), AveragedModel(model))[1],
        "error: train() changed names in the network: 'module.conv0.weight' is new and 'conv0.weight' is gone (15 and",
    ),
    "another shape": (cuts, "error: train() left 'conv1.weight' with shape (8, 8, 3, 3), it was (16, 8, 3, 3)"),
    "a number": (
        lambda model, run: (plainly(model, run), 0.93)[1],
        "error: train() must return None or the network, got a float",
    ),
    "infinite": (breaks, "diverged: train() left NaN or infinite values in 'bn1.bias'"),
    "nan loss": (lambda model, run: run.report(torch.tensor(float("nan"))), "diverged: training loss is nan at step 0"),
    "loss of many": (lambda model, run: run.report(torch.ones(3)), "error: run.report(loss=) takes one number, got a "),
    "begins late": (late, "error: run.begin(steps=) comes before the first optimizer step"),
    "begins at none": (lambda model, run: run.begin(0), "error: run.begin(steps=) takes a whole number >= 1, got 0"),
    "percent": (lambda model, run: run.progress(40), "error: run.progress() takes the share of the training that is "),
    "raises": (lambda model, run: {}["lr"], "error: KeyError: 'lr' (test_own_loop.py, line "),
    "no such split": (
        lambda model, run: run.loader("train"),
        "error: ValueError: unknown split 'train': did you mean ",
    ),
}


@pytest.mark.parametrize(("train", "reason"), FAULTS.values(), ids=FAULTS)
def test_a_loop_that_cannot_be_used_fails_its_trial_in_one_line(tiny, dense, train, reason):
    found = by(tiny, dense, train).result
    assert found.state == "failed"
    assert found.reason.startswith(reason)
    assert not _global_optimizer_post_hooks and not _global_optimizer_pre_hooks


def test_a_problem_counts_though_the_loop_catches_it(tiny, dense):
    def train(model, run):
        plainly(model, run)
        try:
            run.begin(7)
        except UsageError:
            return

    assert by(tiny, dense, train).result.reason.startswith("error: run.begin(steps=) comes before")


def test_the_next_trial_is_as_if_the_failed_one_had_not_been(tiny, dense):
    first = by(tiny, dense, plainly)
    by(tiny, dense, FAULTS["nan loss"][0])
    again = by(tiny, dense, plainly)
    assert weights_fingerprint(first.model) == weights_fingerprint(again.model)


def test_a_time_limit_ends_the_loop(tiny, dense):
    def train(model, run):
        while True:
            plainly(model, run)

    assert by(tiny, dense, train, seconds=1.5).result.reason.startswith("timed-out: longer than 1.5 s")


def test_the_dense_model_is_trained_by_it_too(tiny, tmp_path):
    told = tmp_path / "told"

    def train(model, run):
        with told.open("a") as file:
            file.write(f"{run.stage} {run.epochs} {run.learning_rate}\n")
        plainly(model, run)

    found = dense_model(replace(tiny, train=train), 0, tmp_path)
    assert found.accuracy > 0.3
    dense_model(replace(tiny, train=train), 0, tmp_path)
    assert told.read_text() == "dense 4 0.1\n"  # the second is in the cache
    with pytest.raises(UsageError, match=r"^train\(\) took no step of 80 by a torch\.optim\.Optimizer"):
        dense_model(replace(tiny, train=lambda model, run: None), 0, tmp_path)
