from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch

from agents.experience import Experience
from agents.uplift_learners import MODEL_FILE, BoostingConfig, Learner, UpliftPolicy, fit_uplift
from envs.observation import CONTEXT_FEATURES, LOG_DUAL_PRICE, PRESSURE, ObservationLayout

K = 3
LAYOUT = ObservationLayout(2, K)
SMALL = BoostingConfig(n_rounds=150, learning_rate=0.1, num_leaves=8, min_rows_in_leaf=20)
USER = CONTEXT_FEATURES.index("expected_basket_margin")
OTHER = CONTEXT_FEATURES.index("visit_probability")
Rows = npt.NDArray[np.float32]


def observed(n: int, seed: int) -> Rows:
    """Rows with users who differ, offers that the predictor takes to do nothing, and known use."""
    rng = np.random.default_rng(seed)
    rows = np.zeros((n, LAYOUT.width), dtype=np.float32)
    rows[:, : LAYOUT.n_context] = rng.normal(size=(n, LAYOUT.n_context))
    rows[:, LOG_DUAL_PRICE] = 0.0
    names = LAYOUT.names()
    for name, value in {"cost_1": 0.3, "cost_2": 0.5, "reserve_1": 0.1, "reserve_2": 0.5}.items():
        rows[:, names.index(name)] = value
    for k in range(K):
        rows[:, names.index(f"allowed_{k}")] = 1.0
    return rows


def true_uplift(rows: Rows) -> npt.NDArray[np.float64]:
    """Offer 1 helps by 1 + the feature, offer 2 by 1 − it; [n, K]."""
    feature = np.clip(rows[:, USER], -2.0, 2.0)
    return np.stack([np.zeros(len(rows)), 1.0 + feature, 1.0 - feature], axis=1)


@cache
def experience(seed: int = 0, n: int = 6_000) -> Experience:
    rng = np.random.default_rng(seed + 100)
    rows = observed(n, seed)
    offer = rng.integers(K, size=n)
    # What users are worth without offers differs far more than what the offers do.
    baseline = 3.0 * rows[:, OTHER]
    margin = baseline + true_uplift(rows)[np.arange(n), offer] + rng.normal(size=n)
    return Experience(
        layout=LAYOUT,
        observation=rows,
        mask=np.ones((n, K), dtype=np.bool_),
        offer=offer,
        propensity=np.full(n, 1.0 / K, dtype=np.float32),
        margin=margin.astype(np.float32),
        cost=np.zeros(n, dtype=np.float32),
        window_weeks=2,
    )


@cache
def fitted(learner: Learner) -> UpliftPolicy:
    return fit_uplift(experience(), learner, seed=0, config=SMALL)


LEARNERS = pytest.mark.parametrize("learner", list(Learner))


@LEARNERS
def test_a_known_effect_is_found(learner: Learner) -> None:
    rows = observed(2_000, seed=7)
    found = fitted(learner).uplift(torch.from_numpy(rows)).numpy()
    truth = true_uplift(rows)
    assert found.shape == (2_000, K)
    assert (found[:, 0] == 0).all()
    for k in (1, 2):
        assert np.corrcoef(found[:, k], truth[:, k])[0, 1] > 0.8
        assert float((found[:, k] - truth[:, k]).mean()) == pytest.approx(0.0, abs=0.2)
    # Better than one effect for all, and what users are worth anyhow is not taken for an effect.
    assert ((found - truth) ** 2)[:, 1:].mean() < 0.65 * truth[:, 1:].var()
    assert abs(np.corrcoef(found[:, 1], rows[:, OTHER])[0, 1]) < 0.25


@LEARNERS
def test_where_all_users_look_alike_it_is_the_difference_of_the_means(learner: Learner) -> None:
    given = _one_feature(experience(n=3_000))
    margin = given.margin.astype(np.float64)
    means = [margin[given.offer == k].mean() for k in range(K)]
    config = BoostingConfig(n_rounds=60, learning_rate=0.5, min_rows_in_leaf=20, l2=0.0)
    found = fit_uplift(given, learner, 0, config).uplift(torch.zeros(4, LAYOUT.width))
    expected = [[0.0, means[1] - means[0], means[2] - means[0]]] * 4
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-3)


def _one_feature(given: Experience) -> Experience:
    """The same outcomes of users who all look alike, so that no model can tell them apart."""
    return replace(given, observation=np.zeros_like(given.observation))


# The policy ----------------------------------------------------------------------------------------


@LEARNERS
def test_greedy_in_uplift_net_of_the_price_of_the_use(learner: Learner) -> None:
    policy = fitted(learner)
    rows = torch.from_numpy(observed(200, seed=3))
    mask = torch.rand(200, K, generator=torch.Generator().manual_seed(0)) < 0.7
    mask[:, 0] = True
    uplift = policy.uplift(rows).numpy()
    spends = []
    for price in (0.1, 1.0, 2.0, 4.0):
        rows[:, LOG_DUAL_PRICE] = float(np.log(price))
        probabilities = policy.probabilities(rows, mask)
        assert probabilities.dtype == rows.dtype
        assert ((probabilities == 0) | (probabilities == 1)).all()
        assert probabilities.sum(dim=1).tolist() == [1.0] * 200
        assert (probabilities[~mask] == 0).all()
        net = uplift - price * np.array([0.0, 0.4, 1.0])
        net[~mask.numpy()] = -np.inf
        assert probabilities.argmax(dim=1).tolist() == net.argmax(axis=1).tolist()
        spends.append(float((probabilities @ torch.tensor([0.0, 0.4, 1.0])).sum()))
    assert spends == sorted(spends, reverse=True)
    assert spends[0] > spends[-1]


@LEARNERS
def test_the_kept_answer_changes_nothing(learner: Learner) -> None:
    policy = fitted(learner)
    one, two = (torch.from_numpy(observed(50, seed)) for seed in (1, 2))
    first, second = policy.uplift(one).clone(), policy.uplift(two).clone()
    assert not torch.equal(first, second)
    for rows, expected in ((one, first), (two, second), (two, second), (one, first)):
        again = rows.clone()
        again[:, LOG_DUAL_PRICE] = 3.0
        again[:, PRESSURE] = 0.2
        LAYOUT.offer_block(again, "reserve").mul_(2.0)
        assert torch.equal(policy.uplift(again), expected)
    # A change in a single number of the same tensor is seen.
    one[7, USER] += 5.0
    changed = policy.uplift(one)
    assert not torch.equal(changed[7], first[7])
    assert torch.equal(changed[:7], first[:7])
    # Nor does a row depend on the others.
    alone = torch.cat([policy.uplift(two[k : k + 1]) for k in range(5)])
    torch.testing.assert_close(alone, second[:5])
    assert policy.uplift(two[:0]).shape == (0, K)


@LEARNERS
def test_saved_and_loaded_it_is_the_same(learner: Learner, tmp_path: Path) -> None:
    policy = fitted(learner)
    policy.save(tmp_path / "uplift")
    loaded = UpliftPolicy.load(tmp_path / "uplift")
    rows = torch.from_numpy(observed(300, seed=5))
    assert torch.equal(loaded.uplift(rows), policy.uplift(rows))
    assert loaded.name == policy.name == learner.value
    assert {path.suffix for path in (tmp_path / "uplift").iterdir()} == {".json", ".txt"}


def test_models_for_other_columns_are_refused(tmp_path: Path) -> None:
    fitted(Learner.S).save(tmp_path)
    content = json.loads((tmp_path / MODEL_FILE).read_text())
    content["columns"][0] = "something_else"
    (tmp_path / MODEL_FILE).write_text(json.dumps(content))
    with pytest.raises(ValueError, match="other observation columns"):
        UpliftPolicy.load(tmp_path)
    with pytest.raises(ValueError, match="needs a model 'outcome_0'"):
        UpliftPolicy(Learner.T, LAYOUT, fitted(Learner.S).models)


@LEARNERS
def test_equal_seeds_give_equal_models(learner: Learner) -> None:
    rows = torch.from_numpy(observed(100, seed=9))
    again = fit_uplift(experience(), learner, seed=0, config=SMALL)
    assert torch.equal(again.uplift(rows), fitted(learner).uplift(rows))


def test_an_offer_sent_too_rarely_cannot_be_learned() -> None:
    with pytest.raises(ValueError, match=r"offer \d was sent \d+ times in the experience"):
        fit_uplift(experience(n=100), Learner.T, 0, SMALL)
