"""The check-up of logs whose health is known."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from rich.console import Console

from experiments.manifest import to_json
from experiments.ope.doctor import Examination, TargetSupport, examine
from experiments.ope.doctor_tables import show_examination
from experiments.ope.logged_dataset import LoggedDataset
from experiments.ope.natural_targets import natural_targets


def make_log(
    probabilities: npt.NDArray[np.float64],
    *,
    weeks: int = 1,
    mask: npt.NDArray[np.bool_] | None = None,
    seed: int = 0,
) -> LoggedDataset:
    """A log of users with ``weeks`` weeks each that acted with ``probabilities`` [N, K]."""
    rng = np.random.default_rng(seed)
    n = len(probabilities)
    action = (probabilities.cumsum(axis=1) < rng.random((n, 1))).sum(axis=1)
    last = np.arange(n) % weeks == weeks - 1
    return LoggedDataset(
        observation=np.zeros((n, 1), dtype=np.float32),
        action=action.astype(np.int64),
        mask=np.ones(probabilities.shape, dtype=np.bool_) if mask is None else mask,
        propensity=probabilities[np.arange(n), action],
        reward=rng.random(n),
        cost=np.zeros(n),
        next_observation=np.zeros((n, 1), dtype=np.float32),
        terminated=last,
        truncated=np.zeros(n, dtype=np.bool_),
        user=np.arange(n) // weeks,
        campaign=np.zeros(n, dtype=np.int64),
        week=np.arange(n) % weeks + 3,
        dual_price=np.zeros(n),
        observation_names=("x",),
        propensity_source="logged",
        behaviour_probabilities=probabilities,
    )


def lottery(n: int = 2000, k: int = 2, **options: Any) -> LoggedDataset:
    return make_log(np.full((n, k), 1 / k), **options)


def target(found: Examination, name: str) -> TargetSupport:
    return next(one for one in found.targets if one.target == name)


def test_a_lottery_can_be_trusted_and_counts_are_effective_sizes() -> None:
    log = lottery()
    found = examine(log, offers=["nothing", "coupon"])
    sent = int((log.action == 1).sum())
    coupon, nothing = target(found, "always coupon"), target(found, "no offer")
    # Weights are 2 where the coupon was sent, else 0: as many effective episodes as coupons.
    assert coupon.ess == pytest.approx(sent)
    assert nothing.ess == pytest.approx(2000 - sent)
    assert coupon.largest_weight_share == pytest.approx(1 / sent)
    assert target(found, "at random").ess == pytest.approx(2000)
    assert {one.verdict for one in found.targets} == {one.model_verdict for one in found.targets} == {"trust"}
    assert found.usable
    assert found.findings == ()
    assert (found.n_steps, found.n_episodes, found.n_users, found.n_campaigns) == (2000, 2000, 2000, 1)
    assert [one.sent_share for one in found.offers] == pytest.approx([1 - sent / 2000, sent / 2000])
    assert found.propensity_range == (0.5, 0.5, 0.5)
    assert found.no_choice_share == 0


def test_weights_multiply_over_an_episode() -> None:
    log = lottery(3000, weeks=3)
    found = examine(log, offers=["nothing", "coupon"])
    coupon = target(found, "always coupon")
    all_three = (log.action == 1).reshape(1000, 3).all(axis=1).sum()
    assert coupon.trajectory_ess == pytest.approx(all_three)
    assert coupon.trajectory_ess < coupon.ess
    assert found.episode_length == (3, 3.0, 3)
    assert (found.first_week, found.last_week) == (3, 5)


def test_an_offer_that_is_hardly_sent_supports_nothing() -> None:
    found = examine(make_log(np.tile([0.995, 0.005], (2000, 1))), offers=["nothing", "coupon"])
    assert target(found, "always coupon").verdict == "do not use"
    assert target(found, "no offer").verdict == "trust"
    assert found.usable
    assert any("fewer than 1%" in said and "coupon" in said for said in found.findings)


def test_a_log_without_chance_supports_only_itself() -> None:
    found = examine(make_log(np.tile([1.0, 0.0], (2000, 1))), offers=["nothing", "coupon"])
    assert target(found, "no offer").verdict == "trust"
    assert target(found, "always coupon").verdict == "do not use"
    assert target(found, "always coupon").ess == 0
    assert any("Never sent" in said and "coupon" in said for said in found.findings)


def test_a_log_of_few_users_supports_nothing_at_all() -> None:
    found = examine(lottery(12, seed=1))
    assert not found.usable
    assert found.findings[0].startswith("This log supports none")
    assert any("Only 12 users" in said for said in found.findings)


def test_wrong_propensities_are_found_with_the_distribution_and_without() -> None:
    acted = make_log(np.tile([0.5, 0.5], (4000, 1)))
    claimed = np.tile([0.7, 0.3], (4000, 1))
    wrong = replace(acted, propensity=claimed[np.arange(4000), acted.action], behaviour_probabilities=claimed)
    found = examine(wrong, offers=["nothing", "coupon"])
    assert not found.usable
    assert all("do not fit what was sent" in one.reason for one in found.targets)
    assert any(said.startswith("Propensities do not fit") for said in found.findings)
    coupon = found.offers[1].calibration
    assert coupon is not None
    assert coupon.observed_share == pytest.approx(0.5, abs=0.03)
    assert coupon.expected_share == pytest.approx(0.3)
    blind = examine(replace(wrong, behaviour_probabilities=None), offers=["nothing", "coupon"])
    assert not blind.usable
    assert blind.offers[1].calibration is None
    assert abs(blind.offers[1].weight_z) > 6


def test_an_offer_that_was_never_sent_does_not_make_the_others_wrong() -> None:
    log = make_log(np.tile([0.5, 0.5, 0.0], (4000, 1)))
    found = examine(replace(log, behaviour_probabilities=None), offers=["nothing", "coupon", "new"])
    assert [target(found, name).verdict for name in ("no offer", "always coupon")] == ["trust", "trust"]
    assert target(found, "always new").model_verdict == "do not use"
    assert found.findings == ("Never sent, so nothing can be said of: new.",)


def test_a_small_misfit_of_a_large_log_calls_for_caution_only() -> None:
    acted = make_log(np.tile([0.5, 0.5], (40_000, 1)))
    claimed = np.tile([0.512, 0.488], (40_000, 1))
    found = examine(
        replace(acted, propensity=claimed[np.arange(40_000), acted.action], behaviour_probabilities=claimed)
    )
    assert any(said.startswith("Propensities do not fit") for said in found.findings)
    assert {one.model_verdict for one in found.targets} == {"caution"}
    # The same without the whole distribution, where inverse propensities tell.
    acted = make_log(np.tile([0.5, 0.5], (200_000, 1)))
    share = claimed[0][acted.action]
    blind = examine(replace(acted, propensity=share, behaviour_probabilities=None))
    assert blind.offers[1].mean_weight == pytest.approx(0.5 / 0.488, abs=0.01)
    assert abs(blind.offers[1].weight_z) > 6
    assert {one.model_verdict for one in blind.targets} == {"caution"}


def test_a_target_is_usable_if_any_estimator_is() -> None:
    one = examine(lottery(100)).targets[0]
    for verdict, with_model, usable in (
        ("trust", "trust", True),
        ("do not use", "caution", True),
        ("do not use", "do not use", False),
    ):
        assert replace(one, verdict=verdict, model_verdict=with_model).usable is usable  # type: ignore[arg-type]


def test_estimated_propensities_are_never_trusted() -> None:
    found = examine(replace(lottery(), propensity_source="estimated"))
    assert {one.verdict for one in found.targets} == {"caution"}
    assert any("estimated" in said for said in found.findings)


def test_what_was_not_allowed_is_counted() -> None:
    mask = np.ones((1000, 3), dtype=np.bool_)
    mask[:400, 2] = False
    mask[:100, 1] = False
    probabilities = mask / mask.sum(axis=1, keepdims=True)
    found = examine(make_log(probabilities, mask=mask), offers=["nothing", "push", "coupon"])
    assert target(found, "always coupon").not_allowed == pytest.approx(0.4)
    assert target(found, "always push").not_allowed == pytest.approx(0.1)
    assert found.no_choice_share == pytest.approx(0.1)
    assert found.offers[2].allowed_share == pytest.approx(0.6)
    assert any("10.0% of rows allowed a single offer" in said for said in found.findings)


def test_natural_targets_by_hand() -> None:
    mask = np.array([[True, True, True], [True, False, True], [False, True, False]])
    probabilities = np.array([[0.2, 0.5, 0.3], [0.4, 0.0, 0.6], [0.0, 1.0, 0.0]])
    log = make_log(probabilities, mask=mask)
    found = {one.name: one.probabilities.tolist() for one in natural_targets(log, ["-", "a", "b"], 0)}
    third = [1 / 3, 1 / 3, 1 / 3]
    assert found == {
        "no offer": [[1, 0, 0], [1, 0, 0], [0, 1, 0]],
        "at random": [third, [0.5, 0, 0.5], [0, 1, 0]],
        "what the log prefers": [[0, 1, 0], [0, 0, 1], [0, 1, 0]],
        "always a": [[0, 1, 0], [1, 0, 0], [0, 1, 0]],
        "always b": [[0, 0, 1], [0, 0, 1], [0, 1, 0]],
    }
    unnamed = list(natural_targets(replace(log, behaviour_probabilities=None), ["-", "a", "b"], None))
    assert [one.name for one in unnamed] == ["at random", "always -", "always a", "always b"]
    assert unnamed[2].probabilities.tolist()[1] == [0.5, 0, 0.5]


def test_rewards_that_decide_alone_are_named() -> None:
    log = lottery(1000)
    reward = log.reward.copy()
    reward[:500] = 0
    reward[717] = 10_000
    found = examine(replace(log, reward=reward))
    assert found.rewards.outliers == 1
    assert found.rewards.outlier_row == 717
    assert found.rewards.zero_share == 0.5
    assert found.rewards.top_user_share > 0.9
    assert any("row 717" in said for said in found.findings)
    of_a_table = examine(replace(log, reward=reward), row=np.arange(5000, 6000))
    assert any("row 5717" in said for said in of_a_table.findings)
    assert any("1% of users hold" in said for said in found.findings)


def test_cut_off_episodes_are_counted() -> None:
    log = lottery(900, weeks=3)
    cut = np.zeros(900, dtype=np.bool_)
    cut[2:90:3] = True
    found = examine(replace(log, terminated=log.terminated & ~cut, truncated=cut))
    assert found.truncated_share == pytest.approx(0.1)
    assert any("10.0% of episodes were cut off" in said for said in found.findings)


def test_names_and_no_offer_must_fit() -> None:
    with pytest.raises(ValueError, match="3 names for 2 offers"):
        examine(lottery(100), offers=["a", "b", "c"])
    with pytest.raises(ValueError, match="no_offer is 2"):
        examine(lottery(100), no_offer=2)


def test_table_and_json_say_the_same() -> None:
    found = examine(lottery(300), offers=["nothing", "50% coupon"], notes=["no cost"])
    written = json.loads(json.dumps(to_json(found.to_dict()), allow_nan=False))
    assert written["usable"] is True
    assert [one["name"] for one in written["offers"]] == ["nothing", "50% coupon"]
    assert written["targets"][0]["verdict"] == found.targets[0].verdict
    shown = io.StringIO()
    show_examination(Console(file=shown, width=200), found)
    for words in ("always 50% coupon", "Note: no cost.", "decisions 300", "by weights alone", "(logged)"):
        assert words in shown.getvalue()
