"""Estimated propensities against logs whose behaviour policy is known."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pytest

from experiments.ope.logged_dataset import LoggedDataError
from experiments.ope.masked_softmax import log_loss, masked_softmax
from experiments.ope.propensity import PropensityConfig, PropensityEstimate, estimate_propensities


@dataclass(frozen=True)
class Log:
    features: npt.NDArray[np.float64]
    mask: npt.NDArray[np.bool_]
    user: npt.NDArray[np.int64]
    true: npt.NDArray[np.float64]
    action: npt.NDArray[np.int64]

    def estimate(self, seed: int = 0, config: PropensityConfig | None = None) -> PropensityEstimate:
        return estimate_propensities(
            self.features, self.action, self.mask, self.user, rng=np.random.default_rng(seed), config=config
        )


def make_log(kind: str, n_users: int = 800, weeks: int = 3, seed: int = 0) -> Log:
    """Three offers of which the second is sometimes masked out, and a fourth that is never sent."""
    rng = np.random.default_rng(seed)
    n = n_users * weeks
    features = rng.normal(size=(n, 4))
    scores = np.zeros((n, 4))
    if kind == "linear":
        scores[:, 1] = 1.2 * features[:, 0] - 0.5
        scores[:, 2] = -0.8 * features[:, 1]
    if kind == "crossed":
        scores[:, 1] = 3.0 * np.sign(features[:, 0] * features[:, 1])
    mask = np.ones((n, 4), dtype=np.bool_)
    mask[:, 1] = rng.random(n) < 0.7
    true = masked_softmax(scores, mask & np.array([True, True, True, False]))
    action = (true.cumsum(axis=1) < rng.random((n, 1))).sum(axis=1)
    return Log(features, mask, np.repeat(np.arange(n_users), weeks), true, action)


def test_a_linear_policy_is_found() -> None:
    log = make_log("linear")
    found = log.estimate()
    assert found.report.model == "logistic"
    assert np.abs(found.probabilities - log.true).mean() < 0.02
    # No worse than the truth by more than what fitting costs, and far better than shares alone.
    losses = found.report.log_loss
    assert losses["logistic"] < log_loss(log.true, log.action) + 0.01
    assert losses["marginal"] > losses["logistic"] + 0.05
    assert log_loss(found.probabilities, log.action) == pytest.approx(losses["logistic"])


def test_probabilities_keep_to_the_mask_and_to_what_is_ever_sent() -> None:
    log = make_log("linear", n_users=200)
    found = log.estimate().probabilities
    assert np.allclose(found.sum(axis=1), 1)
    assert (found[~log.mask] == 0).all()
    assert (found[:, 3] == 0).all()
    assert (found[np.arange(len(found)), log.action] > 0).all()


def test_calibration_by_offer() -> None:
    report = make_log("linear").estimate().report
    assert [one.offer for one in report.offers] == [0, 1, 2, 3]
    for one in report.offers[:3]:
        assert abs(one.z) < 1
        assert one.calibration_error < 0.04
        assert one.auc > 0.55
    assert report.offers[3].expected_share == report.offers[3].observed_share == 0


def test_trees_are_taken_where_a_line_will_not_do() -> None:
    log = make_log("crossed")
    report = log.estimate().report
    assert report.model == "boosted"
    assert report.log_loss["boosted"] < report.log_loss["logistic"] - 0.05
    without = log.estimate(config=PropensityConfig(rounds=0)).report
    assert set(without.log_loss) == {"marginal", "logistic"}


def test_where_nothing_tells_shares_by_mask_are_all_there_is() -> None:
    log = make_log("random")
    found = log.estimate()
    assert found.report.log_loss[found.report.model] == pytest.approx(
        log_loss(log.true, log.action), abs=0.005
    )
    assert np.abs(found.probabilities - log.true).max() < 0.1
    assert all(abs(one.auc - 0.5) < 0.2 for one in found.report.offers[:3])


def test_overconfident_trees_are_cooled() -> None:
    log = make_log("random", n_users=300)
    config = PropensityConfig(rounds=40, learning_rate=0.5, leaves=31, leaf_rows=5)
    report = log.estimate(config=config).report
    # Held-out scores of trees that learnt noise by heart: calibration takes nearly all of it back.
    assert report.log_loss["boosted"] < report.log_loss["marginal"] + 0.02


def test_a_row_without_a_choice_is_certain() -> None:
    log = make_log("linear", n_users=100)
    forced = log.mask.copy()
    forced[:10] = False
    forced[np.arange(10), log.action[:10]] = True
    found = estimate_propensities(log.features, log.action, forced, log.user, rng=np.random.default_rng(0))
    assert found.probabilities[np.arange(10), log.action[:10]].tolist() == [1.0] * 10
    assert found.report.n_rows == 290


def test_the_same_generator_gives_the_same_estimate() -> None:
    log = make_log("crossed", n_users=100)
    assert np.array_equal(log.estimate(5).probabilities, log.estimate(5).probabilities)
    assert not np.array_equal(log.estimate(5).probabilities, log.estimate(6).probabilities)


def test_features_may_be_none_or_constant() -> None:
    log = make_log("linear", n_users=50)
    for features in (np.zeros((150, 0)), np.ones((150, 1))):
        found = estimate_propensities(features, log.action, log.mask, log.user, rng=np.random.default_rng(0))
        assert np.isfinite(found.probabilities).all()
        assert found.report.log_loss[found.report.model] == pytest.approx(
            found.report.log_loss["marginal"], abs=0.01
        )


def test_logs_that_cannot_be_estimated_are_refused() -> None:
    log = make_log("linear", n_users=50)
    with pytest.raises(LoggedDataError, match="from one user"):
        estimate_propensities(
            log.features, log.action, log.mask, np.zeros(150, np.int64), rng=np.random.default_rng(0)
        )
    only = np.zeros_like(log.mask)
    only[np.arange(150), log.action] = True
    with pytest.raises(LoggedDataError, match="nothing was decided"):
        estimate_propensities(log.features, log.action, only, log.user, rng=np.random.default_rng(0))


@pytest.mark.parametrize(
    ("bad", "message"),
    [({"n_folds": 1}, "n_folds"), ({"ridge": 0.0}, "ridge"), ({"rounds": -1}, "rounds")],
)
def test_bad_settings_are_refused(bad: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PropensityConfig(**bad)  # type: ignore[arg-type]
