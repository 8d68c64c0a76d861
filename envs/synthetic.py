"""A market with known parameters, in the schema of real logs, to check estimators and fits against truth.

The process, for user i, week t, category c (x: mass promotion)::

    visit      v_it  ~ Bernoulli(sigmoid(user_i + season_t))
    purchase   y_itc ~ Bernoulli(sigmoid(taste_ic + theta_c depth_tc + kappa_d display_tc + kappa_m mailer_tc
                                         + coupon_lift * 1[i holds a coupon for c in t]))    given v_it
    spend      q_itc ~ (1 - depth_tc) LogNormal(mu_c, s)                                    given y_itc
    redeem     m_itc ~ Bernoulli(rho_i)              given y_itc and a coupon for c held in t

Campaigns reach users with a known propensity that rises with their visit rate, as targeting does in
practice. Every visit leaves a line: one without a purchase in a modelled category buys something
unlisted, so that visits are observed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from envs.log_schema import UNLISTED
from envs.synthetic_process import (
    Campaigns,
    Outcome,
    SyntheticConfig,
    draw_campaigns,
    draw_outcome,
    draw_truth,
)
from envs.synthetic_truth import SyntheticTruth

__all__ = ["SyntheticConfig", "SyntheticTruth", "generate"]

_Columns = dict[str, Any]

_AGES: Final = ("19-24", "25-34", "35-44", "45-54", "55-64", "65+")
_INCOMES: Final = ("under 25K", "25-49K", "50-74K", "75-99K", "100K+")
_UNLISTED_ITEM: Final = "i-unlisted"


def generate(config: SyntheticConfig, seed: int, directory: Path) -> SyntheticTruth:
    """Draw a log and write its tables as Parquet into ``directory``; same config and seed, same files.

    The truth is also saved as ``directory/truth/truth.json``, where no reader of logs looks.

    Args:
        config: size and parameters.
        seed: seed of every draw.
        directory: is created if it is absent.
    """
    streams = np.random.SeedSequence(seed).spawn(4)
    users, promotions, outcomes, lines = (np.random.default_rng(stream) for stream in streams)
    truth = draw_truth(config, users, promotions)
    campaigns = draw_campaigns(config, truth, users)
    outcome = draw_outcome(config, truth, campaigns, outcomes)
    tables = {
        "items": _items(config, truth, lines),
        "users": _users(truth, lines),
        "promotions": _promotions(config, truth),
        **_campaign_tables(config, truth, campaigns),
        **_purchases(config, truth, outcome, lines),
    }
    directory.mkdir(parents=True, exist_ok=True)
    for name, columns in tables.items():
        pq.write_table(pa.table(columns), directory / f"{name}.parquet")
    truth.save(directory / "truth" / "truth.json")
    return truth


def _item_ids(config: SyntheticConfig) -> npt.NDArray[np.str_]:
    """Return [C, items_per_category] item ids."""
    return np.array(
        [
            [f"i{category:03d}-{item}" for item in range(config.items_per_category)]
            for category in range(config.n_categories)
        ]
    )


def _items(config: SyntheticConfig, truth: SyntheticTruth, rng: np.random.Generator) -> _Columns:
    per_category = config.items_per_category
    categories = np.repeat(truth.categories, per_category)
    kinds = np.tile([f"variety {item + 1}" for item in range(per_category)], config.n_categories)
    brands = rng.choice(["National", "Private"], p=[0.7, 0.3], size=len(categories))
    return {
        "item_id": [*_item_ids(config).ravel(), _UNLISTED_ITEM],
        "category": [*categories, UNLISTED],
        "department": [*np.repeat(truth.departments, per_category), None],
        "brand": [*brands, None],
        "description": [
            *(f"{name.lower()}, {kind}" for name, kind in zip(categories, kinds, strict=True)),
            None,
        ],
    }


def _users(truth: SyntheticTruth, rng: np.random.Generator) -> _Columns:
    def banded(factor: npt.NDArray[np.float64], bands: tuple[str, ...]) -> list[str | None]:
        noisy = factor + rng.normal(scale=0.5, size=factor.shape)
        edges = np.quantile(noisy, np.linspace(0, 1, len(bands) + 1)[1:-1])
        unknown = rng.random(factor.shape) < 0.2
        bins = np.searchsorted(edges, noisy)
        return [None if gap else bands[index] for gap, index in zip(unknown, bins, strict=True)]

    return {
        "user_id": truth.user_ids,
        "age": banded(truth.factors[:, 0], _AGES),
        "income": banded(truth.factors[:, 1], _INCOMES),
    }


def _promotions(config: SyntheticConfig, truth: SyntheticTruth) -> _Columns:
    # Rows without display or mailer are written too: they say which stores are covered in which week.
    covered = (config.n_stores + 1) // 2
    shape = (config.n_weeks, config.n_categories, config.items_per_category, covered)
    week, category, item, store = (index.ravel() for index in np.indices(shape))
    return {
        "item_id": _item_ids(config)[category, item],
        "week": (week + 1).astype(np.int32),
        "store_id": _store_ids(store),
        "display": truth.display[week, category] > 0,
        "mailer": truth.mailer[week, category] > 0,
    }


def _store_ids(store: npt.NDArray[Any]) -> npt.NDArray[np.str_]:
    return np.char.add("s", (store + 1).astype(str))


def _campaign_tables(
    config: SyntheticConfig, truth: SyntheticTruth, campaigns: Campaigns
) -> dict[str, _Columns]:
    campaign, user = np.nonzero(campaigns.sent)
    start = np.datetime64(config.first_monday, "us") + campaigns.start * np.timedelta64(7, "D")
    last = start + np.timedelta64(7 * config.campaign_weeks - 1, "D")
    offer_campaign, offer_category = np.nonzero(campaigns.covers)
    per_category = config.items_per_category
    return {
        "campaigns": {
            "user_id": truth.user_ids[user],
            "campaign_id": _campaign_ids(campaign),
            "start": start[campaign],
            "end": last[campaign],
            "propensity": truth.propensity[campaign, user],
        },
        "offers": {
            "campaign_id": np.repeat(_campaign_ids(offer_campaign), per_category),
            "offer_id": np.repeat(_offer_ids(offer_campaign, offer_category), per_category),
            "item_id": _item_ids(config)[offer_category].ravel(),
        },
    }


def _campaign_ids(campaign: npt.NDArray[Any]) -> npt.NDArray[np.str_]:
    return np.char.add("c", (campaign + 1).astype(str))


def _offer_ids(campaign: npt.NDArray[Any], category: npt.NDArray[Any]) -> npt.NDArray[np.str_]:
    return np.char.add(np.char.add(_campaign_ids(campaign), "-"), category.astype(str))


def _purchases(
    config: SyntheticConfig, truth: SyntheticTruth, outcome: Outcome, rng: np.random.Generator
) -> dict[str, _Columns]:
    """Return the transactions, one basket per visit and one line per category bought, and redemptions."""
    shape = outcome.visited.shape
    seconds = rng.integers(8 * 3600, 21 * 3600, size=shape) + 86400 * rng.integers(0, 7, size=shape)
    weeks = np.arange(config.n_weeks) * np.timedelta64(7, "D")
    moment = np.datetime64(config.first_monday, "us") + weeks + seconds.astype("timedelta64[s]")
    store = rng.integers(0, config.n_stores, size=shape)

    user, week, category = np.nonzero(outcome.bought)
    # Items of a category sell unevenly, as on a shelf.
    weights = 1.0 / np.arange(1, config.items_per_category + 1)
    item = rng.choice(config.items_per_category, p=weights / weights.sum(), size=len(user))
    shelf_value = np.exp(rng.normal(truth.log_spend_mean[category], truth.log_spend_sd))
    bare_user, bare_week = np.nonzero(outcome.visited & ~outcome.bought.any(axis=2))
    bare_value = np.exp(rng.normal(1.0, truth.log_spend_sd, size=len(bare_user)))

    all_user, all_week = np.concatenate([user, bare_user]), np.concatenate([week, bare_week])
    value = np.maximum(np.concatenate([shelf_value, bare_value]).round(2), 0.01)
    depth = np.concatenate([truth.depth[week, category], np.zeros(len(bare_user))])
    discount = (value * depth).round(2)
    used = np.zeros(outcome.bought.shape, dtype=bool)
    used[tuple(outcome.redeemed[:, :3].T)] = True
    redeemed = np.concatenate([used[user, week, category], np.zeros(len(bare_user), dtype=bool)])
    spend = (value - discount).round(2)
    ids = np.concatenate([_item_ids(config)[category, item], np.full(len(bare_user), _UNLISTED_ITEM)])
    order = np.lexsort((ids, all_user, moment[all_user, all_week]))

    r_user, r_week, r_category, r_campaign = outcome.redeemed.T
    return {
        "transactions": {
            "user_id": truth.user_ids[all_user][order],
            "basket_id": np.char.add("b", (all_user * config.n_weeks + all_week).astype(str))[order],
            "timestamp": moment[all_user, all_week][order],
            "item_id": ids[order],
            "quantity": np.ones(len(order), dtype=np.int64),
            "spend": spend[order],
            "discount": discount[order],
            "coupon_discount": np.where(redeemed, 0.2 * spend, 0.0).round(2)[order],
            "store_id": _store_ids(store[all_user, all_week])[order],
        },
        "redemptions": {
            "user_id": truth.user_ids[r_user],
            "campaign_id": _campaign_ids(r_campaign),
            "offer_id": _offer_ids(r_campaign, r_category),
            "timestamp": moment[r_user, r_week],
        },
    }
