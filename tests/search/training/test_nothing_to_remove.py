"""A trial of a policy that removes nothing fails with the reason."""

from __future__ import annotations

from dataclasses import replace

from small_net import GRAPH, MODEL, made

from search import Recipe
from spaces import PruningPolicy


def test_a_trial_of_nothing_fails_with_the_reason_before_training():
    from search.training.evaluate import PreparedModel, evaluate_policy

    subject = PreparedModel(replace(made(), recipe=Recipe(batch=2, trial_epochs=1)), MODEL, GRAPH)
    steps: list[int] = []
    for policy, reason in (
        (PruningPolicy({"conv0.weight": 0.001}), "0.001 of 72 units rounds to none"),
        (PruningPolicy({"classifier.weight": 0.5}, "channel"), "its outputs are the network's outputs"),
    ):
        result = evaluate_policy(subject, policy, 1, 0, lambda *counts: steps.append(1)).result
        assert (result.state, result.reason) == (
            "failed", f"refused: nothing to remove: {next(iter(policy.sparsity))!r} stays whole ({reason}): "
            "ask for a larger share, or of another layer",
        )  # fmt: skip
    assert not steps and evaluate_policy(subject, PruningPolicy({}), 1, 0).result.state == "complete"
