"""The surrogate against scikit-learn's Gaussian process, and laws it keeps."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, DotProduct, Matern

from search.proposals import surrogate as subject
from search.proposals.surrogate import Surrogate


def data(rows: int = 14, columns: int = 3, seed: int = 0):
    random = np.random.default_rng(seed)
    x = random.normal(size=(rows, columns)) * [1.0, 5.0, 0.2] + [0.0, 30.0, -1.0]
    return x, np.sin(x[:, 0]) + 0.1 * x[:, 1] + 3 * x[:, 2] ** 2


def test_one_combination_equals_scikit_learn(monkeypatch):
    monkeypatch.setattr(subject, "LENGTHS", (1.7,))
    monkeypatch.setattr(subject, "LINEAR_SHARES", (0.3,))
    monkeypatch.setattr(subject, "NOISES", (0.05,))
    x, y = data()
    at = data(5, seed=1)[0]
    scaled, where = ((part - x.mean(0)) / x.std(0) / np.sqrt(3) for part in (x, at))
    z = (y - y.mean()) / y.std()
    kernel = ConstantKernel(0.3) * DotProduct(1.0) + ConstantKernel(0.7) * Matern(1.7, nu=2.5)
    oracle = GaussianProcessRegressor(kernel, alpha=0.05 + 1e-8, optimizer=None).fit(scaled, z)
    scale = z @ np.linalg.solve(kernel(scaled) + (0.05 + 1e-8) * np.eye(len(z)), z) / len(z)
    mean, sd = oracle.predict(where, return_std=True)
    found = Surrogate(x, y).predict(at)
    np.testing.assert_allclose(found.mean, mean * y.std() + y.mean(), rtol=1e-6)
    np.testing.assert_allclose(found.sd, sd * np.sqrt(scale) * y.std(), rtol=1e-5)


def test_columns_in_other_units_change_nothing():
    x, y = data()
    at = data(4, seed=2)[0]
    changed = Surrogate(x * [10, 0.1, 1] + [1, 2, 3], y).predict(at * [10, 0.1, 1] + [1, 2, 3])
    np.testing.assert_allclose(changed.mean, Surrogate(x, y).predict(at).mean, rtol=1e-6)


def test_values_in_other_units_scale_with_them():
    x, y = data()
    at = data(4, seed=2)[0]
    plain, scaled = Surrogate(x, y).predict(at), Surrogate(x, 4 * y - 1).predict(at)
    np.testing.assert_allclose(scaled.mean, 4 * plain.mean - 1, rtol=1e-6)
    np.testing.assert_allclose(scaled.sd, 4 * plain.sd, rtol=1e-6)


def test_a_column_that_does_not_vary_is_ignored():
    x, y = data()
    with_constant = Surrogate(np.column_stack([x, np.full(len(x), 7.0)]), y)
    at = data(4, seed=2)[0]
    found = with_constant.predict(np.column_stack([at, np.full(4, -100.0)]))
    np.testing.assert_allclose(found.mean, Surrogate(x, y).predict(at).mean)


def test_follows_a_line_beyond_the_data_and_is_less_sure_there():
    x = np.linspace(0, 1, 12)[:, None]
    found = Surrogate(x, 2 * x[:, 0] + 1).predict(np.array([[0.5], [2.0]]))
    assert found.mean == pytest.approx([2.0, 5.0], abs=0.05)
    assert found.sd[1] > found.sd[0]


def test_a_weight_counts_like_copies_of_its_column():
    x, y = data()
    at = data(4, seed=2)[0]
    copied = Surrogate(x[:, [0, 1, 1, 1, 2]], y).predict(at[:, [0, 1, 1, 1, 2]])
    weighted = Surrogate(x, y, np.array([1.0, 3.0, 1.0])).predict(at)
    np.testing.assert_allclose(weighted.mean, copied.mean)
    np.testing.assert_allclose(weighted.sd, copied.sd)


def test_an_anchor_is_met_and_gives_a_direction():
    """Observations without a slope of their own: the anchor's is taken over."""
    x, y = np.array([[4.0, 1.0], [1.0, 4.0], [2.5, 2.5], [2.4, 2.6]]), np.array([1.0, 1.0, 1.0, 1.001])
    anchors = np.array([[0.0, 0.0]]), np.array([-9.0])
    found = Surrogate(x, y, None, anchors).predict(np.array([[0.0, 0.0], [3.0, 3.0], [2.0, 2.0]]))
    assert found.mean[0] == pytest.approx(-9.0, abs=1.0)
    assert found.mean[1] > found.mean[2] + 0.3
    alone = Surrogate(x, y).predict(np.array([[3.0, 3.0], [2.0, 2.0]]))
    assert abs(alone.mean[0] - alone.mean[1]) < 0.1


def test_a_column_only_the_anchor_varies_is_ignored():
    x, y = data()
    at, anchor = data(4, seed=2)[0], data(1, seed=3)[0]
    plain = Surrogate(x, y, None, (anchor, np.array([2.0]))).predict(at)
    wider = Surrogate(
        np.column_stack([x, np.full(len(x), 7.0)]), y, None, (np.column_stack([anchor, [[90.0]]]), np.array([2.0]))
    ).predict(np.column_stack([at, np.zeros(4)]))
    np.testing.assert_allclose(wider.mean, plain.mean)


@pytest.mark.parametrize("rows", [2, 3])
def test_few_and_equal_observations_are_no_error(rows):
    found = Surrogate(np.zeros((rows, 2)), np.ones(rows)).predict(np.array([[0.0, 0.0], [5.0, 1.0]]))
    assert np.isfinite(found.mean).all() and np.isfinite(found.sd).all() and found.mean == pytest.approx([1.0, 1.0])


@pytest.fixture
def one_combination(monkeypatch):
    """Only that, so that scikit-learn can be held against it."""
    monkeypatch.setattr(subject, "LENGTHS", (1.7,))
    monkeypatch.setattr(subject, "LINEAR_SHARES", (0.3,))
    monkeypatch.setattr(subject, "NOISES", (0.05,))


def oracle(x: np.ndarray, y: np.ndarray, more: np.ndarray, values: np.ndarray) -> GaussianProcessRegressor:
    """The same process with further rows, in the units of the first ones: centres, spreads and scale are theirs."""
    rows = (np.vstack([x, more]) - x.mean(0)) / x.std(0) / np.sqrt(3)
    z = (np.append(y, values) - y.mean()) / y.std()
    kernel = ConstantKernel(0.3) * DotProduct(1.0) + ConstantKernel(0.7) * Matern(1.7, nu=2.5)
    return GaussianProcessRegressor(kernel, alpha=0.05 + 1e-8, optimizer=None).fit(rows, z)


def test_further_rows_are_those_of_scikit_learn(one_combination):
    x, y = data()
    more, at = data(4, seed=3)[0], data(5, seed=1)[0]
    drawn = np.array([[0.5, 3.0, -1.0, 2.0], [4.0, 0.0, 1.0, -2.0]])
    plain, found = Surrogate(x, y), Surrogate(x, y).given(more, drawn).predict(at)
    kernel = oracle(x, y, more[:0], drawn[0, :0])
    z, where = (y - y.mean()) / y.std(), (at - x.mean(0)) / x.std(0) / np.sqrt(3)
    scale = z @ np.linalg.solve(kernel.kernel_(kernel.X_train_) + (0.05 + 1e-8) * np.eye(len(z)), z) / len(z)
    assert found.mean.shape == found.sd.shape == (2, 5)
    for one, values in zip(found.each, drawn, strict=True):
        mean, sd = oracle(x, y, more, values).predict(where, return_std=True)
        np.testing.assert_allclose(one.mean, mean * y.std() + y.mean(), rtol=1e-6)
        np.testing.assert_allclose(one.sd, sd * np.sqrt(scale) * y.std(), rtol=1e-5)
    np.testing.assert_array_equal(plain.predict(at).mean, Surrogate(x, y).predict(at).mean)


def test_draws_are_of_all_places_together(one_combination):
    x, y = data()
    more = np.vstack([data(2, seed=3)[0], data(1, seed=3)[0] + [0.01, 0.01, 0.001]])
    kernel, where = oracle(x, y, more[:0], np.zeros(0)), (more - x.mean(0)) / x.std(0) / np.sqrt(3)
    mean, covariance = kernel.predict(where, return_cov=True)
    z = (y - y.mean()) / y.std()
    scale = z @ np.linalg.solve(kernel.kernel_(kernel.X_train_) + (0.05 + 1e-8) * np.eye(len(z)), z) / len(z)
    drawn = Surrogate(x, y).draw(more, 4000, np.random.default_rng(5))
    wanted = (covariance + 0.05 * np.eye(3)) * scale * y.var()
    assert drawn.shape == (4000, 3)
    np.testing.assert_allclose(drawn.mean(0), mean * y.std() + y.mean(), atol=4 * np.sqrt(wanted.max() / 4000))
    np.testing.assert_allclose(np.cov(drawn.T), wanted, atol=0.1 * wanted.max())
    assert np.corrcoef(drawn.T)[0, 2] > 0.3


def test_draws_of_many_combinations_are_spread_as_is_predicted():
    x, y = data()
    more = data(2, seed=3)[0] * 2
    drawn, predicted = Surrogate(x, y).draw(more, 4000, np.random.default_rng(5)), Surrogate(x, y).predict(more)
    np.testing.assert_allclose(drawn.mean(0), predicted.mean, atol=0.1 * predicted.sd.max())
    assert (drawn.std(0) > 0.95 * predicted.sd).all()


def test_what_is_given_is_followed():
    """A draw of what is predicted moves nothing there; one far off moves its surroundings, and the observed little."""
    (x, y), more = data(), data(1, seed=3)[0]
    plain = Surrogate(x, y)
    expected = plain.predict(more).mean
    told = plain.given(more, np.array([expected, expected + 2])).predict(np.vstack([more, x]))
    assert told.mean[0, 0] == pytest.approx(expected[0], abs=0.02)
    moved = np.abs(told.mean[1] - told.mean[0])
    assert 2 >= moved[0] > 1 > 4 * moved[1:].mean()
    assert told.sd[1, 0] < 0.7 * plain.predict(more).sd[0]
