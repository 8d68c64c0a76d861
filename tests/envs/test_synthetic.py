"""The synthetic log follows its stated process, and the panel recovers what it should of the truth."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest

from encoders.panel import Panel
from envs.logs import open_logs
from envs.panel_from_logs import build_panel, pseudonyms
from envs.redemption_rows import RedemptionRows, redemption_rows
from envs.synthetic import SyntheticConfig, SyntheticTruth, generate
from envs.synthetic_truth import sigmoid

KEY = b"0123456789abcdef"
CONFIG = SyntheticConfig(n_users=500, n_categories=8, n_campaigns=8)
Floats = npt.NDArray[np.float64]


class Market:
    """A log, its truth in the panel's order, and the panel."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.truth = generate(CONFIG, 11, directory)
        with open_logs(directory) as logs:
            self.panel: Panel = build_panel(logs, n_categories=CONFIG.n_categories, pseudonym_key=KEY)
            self.rows: RedemptionRows = redemption_rows(logs, self.panel)
        position = {name: index for index, name in enumerate(pseudonyms(self.truth.user_ids.tolist(), KEY))}
        self.users = np.array([position[user] for user in self.panel.user_ids.tolist()])
        names = self.truth.categories.tolist()
        self.categories = np.array([names.index(name) for name in self.panel.categories.tolist()])
        weeks = self.panel.n_weeks
        self.visit = sigmoid(self.truth.visit_logit[self.users, :weeks])
        self.purchase = sigmoid(self.truth.purchase_logit[self.users, :weeks][:, :, self.categories])


@pytest.fixture(scope="module")
def market(tmp_path_factory: pytest.TempPathFactory) -> Market:
    return Market(tmp_path_factory.mktemp("market"))


def z_score(outcome: npt.NDArray[np.bool_], chance: Floats, weight: Floats | float = 1.0) -> float:
    """Score statistic of a Bernoulli model: standard normal if ``chance`` is true."""
    score = (weight * (outcome - chance)).sum()
    return float(score / np.sqrt((np.square(weight) * chance * (1 - chance)).sum()))


def test_visits_follow_the_true_logits(market: Market) -> None:
    # Users without a visit in 40 weeks are not in the panel: at these rates, none or hardly any.
    assert len(market.users) > 0.99 * CONFIG.n_users
    assert abs(z_score(market.panel.visited, market.visit)) < 4
    season = market.truth.season[: market.panel.n_weeks]
    assert abs(z_score(market.panel.visited, market.visit, season)) < 4


@pytest.mark.parametrize("effect", ["depth", "display", "mailer"])
def test_purchases_follow_the_true_logits(market: Market, effect: str) -> None:
    """The score of the true parameter is near zero, and that of a parameter of zero is far from it."""
    truth, visited = market.truth, market.panel.visited
    feature = getattr(truth, effect)[: market.panel.n_weeks, market.categories]
    weight = np.broadcast_to(feature, market.purchase.shape)[visited]
    bought = market.panel.bought[visited]
    assert abs(z_score(bought, market.purchase[visited], weight)) < 4
    none = {
        "depth": replace(truth, theta=0 * truth.theta),
        "display": replace(truth, kappa_display=0.0),
        "mailer": replace(truth, kappa_mailer=0.0),
    }[effect]
    wrong = sigmoid(none.purchase_logit[market.users, : market.panel.n_weeks][:, :, market.categories])
    assert z_score(bought, wrong[visited], weight) > 6


def test_the_panel_recovers_the_promotions(market: Market) -> None:
    weeks = market.panel.n_weeks
    depth = market.truth.depth[:weeks, market.categories]
    # Rounding to cents, and carried rates of an item that did not sell, leave a small difference.
    assert np.abs(market.panel.promotion_depth - depth).mean() < 0.004
    assert np.array_equal(
        market.panel.display, market.truth.display[:weeks, market.categories].astype(np.float32)
    )
    assert np.array_equal(
        market.panel.mailer, market.truth.mailer[:weeks, market.categories].astype(np.float32)
    )


def test_spend_is_lognormal_after_the_shelf_discount(market: Market) -> None:
    depth = market.truth.depth[: market.panel.n_weeks, market.categories]
    shelf = market.panel.category_spend / (1 - depth)
    for index, category in enumerate(market.categories):
        logs = np.log(shelf[:, :, index][market.panel.bought[:, :, index]])
        error = logs.mean() - market.truth.log_spend_mean[category]
        assert abs(error) < 4 * market.truth.log_spend_sd / np.sqrt(len(logs)) + 1e-3
        assert logs.std() == pytest.approx(market.truth.log_spend_sd, rel=0.08)


def test_redemptions_follow_the_true_probabilities(market: Market) -> None:
    """Where campaigns overlap one coupon is used, so only users with one covering campaign are compared."""
    rows = market.rows
    keys = np.stack([rows.user, rows.week, rows.category], axis=1)
    _, index, counts = np.unique(keys, axis=0, return_index=True, return_counts=True)
    single = index[counts == 1]
    # Labels allow two days: a purchase in the next week may lend its redemption. Rare, and upwards.
    chance = market.truth.redemption_probability[market.users[rows.user[single]]]
    assert len(single) > 1000
    excess = rows.redeemed[single].mean() - chance.mean()
    assert -0.03 < excess < 0.06
    high = chance > np.median(chance)
    assert rows.redeemed[single][high].mean() > 2 * rows.redeemed[single][~high].mean()


def test_raw_redemptions_and_targeting_follow_the_truth(market: Market) -> None:
    campaigns = pd.read_parquet(market.directory / "campaigns.parquet")
    sent = np.zeros(market.truth.propensity.shape, dtype=bool)
    ids = {name: index for index, name in enumerate(market.truth.user_ids.tolist())}
    users = campaigns["user_id"].map(ids).to_numpy()
    numbers = campaigns["campaign_id"].str[1:].astype(int).to_numpy() - 1
    sent[numbers, users] = True
    assert abs(z_score(sent, market.truth.propensity)) < 4
    assert campaigns["propensity"].to_numpy() == pytest.approx(market.truth.propensity[numbers, users])


def test_the_profile_tells_of_taste(market: Market) -> None:
    users = pd.read_parquet(market.directory / "users.parquet").dropna(subset=["age"])
    order = {name: index for index, name in enumerate(market.truth.user_ids.tolist())}
    factor = market.truth.factors[users["user_id"].map(order).to_numpy(), 0]
    assert factor[(users["age"] == "65+").to_numpy()].mean() > 0.8
    assert factor[(users["age"] == "19-24").to_numpy()].mean() < -0.8


def test_same_seed_same_files(tmp_path: Path) -> None:
    small = SyntheticConfig(n_users=20, n_weeks=26)
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        generate(small, seed, tmp_path / name)
    files = {
        name: {path.name: path.read_bytes() for path in (tmp_path / name).rglob("*.*")} for name in "abc"
    }
    assert len(files["a"]) == 8
    assert files["a"] == files["b"]
    assert files["a"]["transactions.parquet"] != files["c"]["transactions.parquet"]


@pytest.mark.parametrize("campaigns", [0, 3])
def test_truth_survives_the_file(tmp_path: Path, campaigns: int) -> None:
    truth = generate(SyntheticConfig(n_users=20, n_weeks=26, n_campaigns=campaigns), 1, tmp_path)
    loaded = SyntheticTruth.load(tmp_path / "truth" / "truth.json")
    for field in fields(truth):
        left, right = getattr(truth, field.name), getattr(loaded, field.name)
        assert np.array_equal(left, right), field.name
    with open_logs(tmp_path) as logs:
        panel = build_panel(logs, n_categories=24, pseudonym_key=KEY)
        assert (len(redemption_rows(logs, panel)) > 0) == (campaigns > 0)


def test_coupon_lift_raises_covered_purchases(tmp_path: Path) -> None:
    means = []
    for lift in (0.0, 1.5):
        generate(replace(CONFIG, coupon_lift=lift), 4, tmp_path / str(lift))
        with open_logs(tmp_path / str(lift)) as logs:
            means.append(len(redemption_rows(logs, build_panel(logs, n_categories=8, pseudonym_key=KEY))))
    assert means[1] > 1.5 * means[0]


@pytest.mark.parametrize(
    "wrong", [{"n_users": 0}, {"campaign_categories": 99}, {"redemption_rate": 1.0}, {"campaign_weeks": 99}]
)
def test_impossible_configurations_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        replace(SyntheticConfig(), **wrong)  # type: ignore[arg-type]  # wrong on purpose
