from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression

from experiments.ope.masked_softmax import fit_logistic, fit_scaling, log_loss, masked_softmax


def draw_actions(probabilities: npt.NDArray[np.float64], rng: np.random.Generator) -> npt.NDArray[np.int64]:
    return np.asarray((probabilities.cumsum(axis=1) < rng.random((len(probabilities), 1))).sum(axis=1))


@given(seed=st.integers(0, 2**32 - 1), scale=st.sampled_from([0.1, 1.0, 1000.0]))
def test_softmax_is_a_distribution_over_what_is_allowed(seed: int, scale: float) -> None:
    rng = np.random.default_rng(seed)
    scores = scale * rng.normal(size=(5, 4))
    mask = rng.random((5, 4)) < 0.5
    mask[np.arange(5), rng.integers(4, size=5)] = True
    found = masked_softmax(scores, mask)
    assert (found[~mask] == 0).all()
    assert np.allclose(found.sum(axis=1), 1)
    # What is added to a whole row changes nothing, nor does a score that is masked out.
    moved = np.where(mask, scores + 7.0, 1e9)
    assert np.allclose(masked_softmax(moved, mask), found)


def test_softmax_and_log_loss_by_hand() -> None:
    found = masked_softmax(np.log([[1.0, 3.0, 4.0]]), np.array([[True, True, False]]))
    assert found.tolist()[0] == pytest.approx([0.25, 0.75, 0])
    assert log_loss(found, np.array([1])) == pytest.approx(-np.log(0.75))


def test_without_a_mask_it_is_scikit_learn_s_regression() -> None:
    rng = np.random.default_rng(0)
    features = rng.normal(size=(400, 3))
    truth = masked_softmax(features @ rng.normal(size=(3, 4)), np.ones((400, 4), dtype=np.bool_))
    action = draw_actions(truth, rng)
    everything = np.ones((400, 4), dtype=np.bool_)
    ours = fit_logistic(features, action, everything, ridge=2.0, intercept_ridge=1e-9)
    peer = LogisticRegression(C=0.5, tol=1e-10, max_iter=10_000).fit(features, action)
    found = masked_softmax(ours.scores(features), everything)
    np.testing.assert_allclose(found, peer.predict_proba(features), atol=2e-5)


def test_masks_do_not_count_against_what_they_forbid() -> None:
    """Two kinds of rows without features: each offer's odds against offer 0 are its counts there."""
    counts = {(0, 1): (30, 10), (0, 2): (5, 20)}
    action, mask = [], []
    for (one, other), (first, second) in counts.items():
        allowed = np.isin(np.arange(3), (one, other))
        action += [one] * first + [other] * second
        mask += [allowed] * (first + second)
    model = fit_logistic(np.zeros((65, 0)), np.array(action), np.array(mask), ridge=1.0, intercept_ridge=1e-9)
    found = np.exp(model.intercept - model.intercept[0])
    assert found.tolist() == pytest.approx([1, 10 / 30, 20 / 5], rel=1e-4)


def test_an_offer_never_seen_keeps_a_small_probability() -> None:
    everything = np.ones((50, 2), dtype=np.bool_)
    action = np.zeros(50, dtype=np.int64)
    model = fit_logistic(np.zeros((50, 0)), action, everything, ridge=1.0, intercept_ridge=0.1)
    share = masked_softmax(model.scores(np.zeros((1, 0))), everything[:1])[0, 1]
    assert 0 < share < 0.02


def test_scaling_undoes_what_was_done_to_the_scores() -> None:
    rng = np.random.default_rng(1)
    truth = rng.normal(size=(20_000, 3))
    everything = np.ones(truth.shape, dtype=np.bool_)
    action = draw_actions(masked_softmax(truth, everything), rng)
    distorted = 3.0 * (truth - np.array([0.0, 0.5, -0.2]))
    scaling = fit_scaling(distorted, action, everything, intercept_ridge=1e-9)
    assert scaling.temperature == pytest.approx(3.0, rel=0.05)
    assert (scaling.bias - scaling.bias[0]).tolist() == pytest.approx([0, 0.5, -0.2], abs=0.06)
    found = masked_softmax(scaling.apply(distorted), everything)
    # At the optimum every offer is expected as often as it was sent.
    assert found.mean(axis=0).tolist() == pytest.approx(
        (np.bincount(action) / len(action)).tolist(), abs=1e-6
    )


def test_scores_that_tell_nothing_are_made_small() -> None:
    rng = np.random.default_rng(2)
    noise = 5.0 * rng.normal(size=(5_000, 2))
    everything = np.ones(noise.shape, dtype=np.bool_)
    scaling = fit_scaling(noise, rng.integers(2, size=5_000), everything, intercept_ridge=0.1)
    assert scaling.temperature > 20


@pytest.mark.filterwarnings("error")
def test_an_action_without_probability_has_an_infinite_loss() -> None:
    assert log_loss(np.array([[0.5, 0.5], [1.0, 0.0]]), np.array([0, 1])) == np.inf
