"""The redemption model ends at its optimum, keeps its invariances, and refuses what it cannot fit."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from scipy.optimize import minimize
from sklearn.linear_model import LogisticRegression

from encoders.redemption import RedemptionModel

Floats = npt.NDArray[np.float64]
TRUTH = np.array([0.9, -0.5, 0.0])


def sample(n: int, seed: int = 0, d: int = 4) -> tuple[Floats, npt.NDArray[np.bool_], Floats]:
    """Features [n, 3] of unequal scales, outcomes, and an embedding [n, d] whose first column matters."""
    rng = np.random.default_rng(seed)
    z = rng.standard_normal((n, 3))
    e = rng.standard_normal((n, d))
    logit = -1.5 + z @ TRUTH + 0.8 * e[:, 0]
    return z * [1, 10, 0.1] + [0, 5, -3], rng.random(n) < 1 / (1 + np.exp(-logit)), e


def test_it_is_the_optimum_that_others_find() -> None:
    x, y, _ = sample(800)
    model = RedemptionModel.fit(x, y, ridge=7.0)
    standard = (x - x.mean(axis=0)) / x.std(axis=0)
    # scikit-learn minimises C·Σ loss + ½|w|², without a penalty on the intercept.
    peer = LogisticRegression(C=1 / 7.0, tol=1e-10, max_iter=1000).fit(standard, y)
    assert model.weight == pytest.approx(peer.coef_[0], abs=1e-5)
    assert model.bias == pytest.approx(peer.intercept_, abs=1e-5)
    assert model.predict_proba(x) == pytest.approx(peer.predict_proba(standard)[:, 1], abs=1e-5)


def test_features_and_embedding_have_their_own_penalty() -> None:
    x, y, e = sample(300)
    model = RedemptionModel.fit(x, y, ridge=3.0, embedding=e, embedding_ridge=40.0)
    centred = e - e.mean(axis=0)
    design = np.hstack(
        [np.ones((300, 1)), (x - x.mean(axis=0)) / x.std(axis=0), centred / np.sqrt((centred**2).mean())]
    )
    penalty = np.array([0.0, *[3.0] * 3, *[40.0] * 4])

    def objective(b: Floats) -> float:
        eta = design @ b
        return float((np.logaddexp(0, eta) - y * eta).sum() + 0.5 * penalty @ b**2)

    peer = minimize(objective, np.zeros(8), method="BFGS").x
    fitted = np.concatenate([model.bias, model.weight, model.embedding_weight])
    assert fitted == pytest.approx(peer, abs=1e-4)


def test_it_recovers_the_truth_and_the_mean_rate() -> None:
    x, y, e = sample(40_000)
    model = RedemptionModel.fit(x, y, ridge=1.0, embedding=e, embedding_ridge=1.0)
    assert model.weight == pytest.approx(TRUTH, abs=0.06)
    assert model.embedding_weight == pytest.approx([0.8, 0, 0, 0], abs=0.06)
    # The bias is not penalised, so expected and observed redemptions agree exactly.
    assert model.predict_proba(x, e).mean() == pytest.approx(y.mean(), abs=1e-7)


def test_units_and_rotations_change_nothing() -> None:
    x, y, e = sample(500)
    rotation = np.linalg.qr(np.random.default_rng(1).standard_normal((4, 4)))[0]
    plain = RedemptionModel.fit(x, y, embedding=e).predict_proba(x, e)
    x_other, e_other = 3.0 * x - 7.0, 0.01 * e @ rotation + 2.0
    other = RedemptionModel.fit(x_other, y, embedding=e_other).predict_proba(x_other, e_other)
    assert other == pytest.approx(plain, abs=1e-6)


@pytest.mark.parametrize("value", [0.0, 0.1, 1e6])
def test_a_constant_feature_changes_nothing(value: float) -> None:
    x, y, _ = sample(200)
    wide = np.c_[x, np.full(200, value)]
    assert RedemptionModel.fit(wide, y).predict_proba(wide) == pytest.approx(
        RedemptionModel.fit(x, y).predict_proba(x), abs=1e-9
    )


def test_separated_outcomes_have_a_finite_optimum() -> None:
    x = np.r_[np.full((30, 1), -1.0), np.full((3, 1), 50.0)]
    y = x[:, 0] > 0
    model = RedemptionModel.fit(x, y, ridge=1e-3)
    assert np.isfinite(model.weight).all()
    assert (model.predict_proba(x) > 0.5).tolist() == y.tolist()


def test_it_survives_the_file(tmp_path: Path) -> None:
    x, y, e = sample(100)
    for name, embedding in (("plain", None), ("text", e.astype(np.float32))):
        model = RedemptionModel.fit(x, y, embedding=embedding)
        model.save(tmp_path / f"{name}.safetensors")
        loaded = RedemptionModel.load(tmp_path / f"{name}.safetensors")
        for field in fields(model):
            assert np.array_equal(getattr(loaded, field.name), getattr(model, field.name)), field.name
        assert np.array_equal(loaded.predict_proba(x, embedding), model.predict_proba(x, embedding))
    assert not list(tmp_path.glob("*.tmp"))


def test_what_cannot_be_fitted_is_refused() -> None:
    x, y, e = sample(50)
    with pytest.raises(ValueError, match="rows that redeemed and rows that did not"):
        RedemptionModel.fit(x, np.ones(50, dtype=bool))
    with pytest.raises(ValueError, match="rows that redeemed and rows that did not"):
        RedemptionModel.fit(x[:0], y[:0])
    with pytest.raises(ValueError, match="differ in rows: 50, 50, 49"):
        RedemptionModel.fit(x, y, embedding=e[1:])
    with pytest.raises(ValueError, match="finite"):
        RedemptionModel.fit(np.where(x == x[0], np.nan, x), y)
    with pytest.raises(ValueError, match="above 0"):
        RedemptionModel.fit(x, y, ridge=0.0)
    with pytest.raises(ValueError, match="with an embedding of 4 columns"):
        RedemptionModel.fit(x, y, embedding=e).logit(x)
    with pytest.raises(ValueError, match="without one"):
        RedemptionModel.fit(x, y).logit(x, e)
