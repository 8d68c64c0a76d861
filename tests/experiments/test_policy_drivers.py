"""What drives a policy: hand-made policies whose drivers are known, and the words that come of it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner

from agents.bundle_writer import PolicyFacts, write_manifest, write_settings
from agents.export import export_network_graph
from agents.offer_network import OfferNetwork, OfferNetworkShape
from agents.serving import BundleError, ObservationPolicy
from agents.serving.bundle import NETWORK_FILE, REQUIRED, SETTINGS_FILE
from agents.serving.pacing import BudgetPlan, PlannedWeek
from encoders.panel import Panel
from encoders.user_text import UserTextStyle
from envs.assumptions import AssumedResponse
from envs.demo_market import EMBEDDING, demo_market
from envs.observation import ObservationLayout
from envs.offers import Catalogue, Offer
from experiments import cli, explain_policy
from experiments.artifacts import (
    EMBEDDINGS_FILE,
    HEADS_FILE,
    PANEL_FILE,
    TARGETING_FILE,
    TOKENIZER_FILE,
    MarketParts,
    SimulatorRecord,
    save_arrays,
    save_module,
    save_simulators,
)
from experiments.config import ConfigError, MarketConfig
from experiments.explain_policy import PolicyExplanation, ServedPolicy, played_rows, show_policy
from experiments.fitted_run import FittedRun
from experiments.manifest import STATE_FOLDER, StageRecord, write_json, write_record
from experiments.policy_drivers import (
    CAVEAT,
    DecisionRows,
    Direction,
    Driver,
    FloatArray,
    Measured,
    in_words,
    outer_fifths,
    rank_drivers,
    switched,
)
from experiments.policy_inputs import DoubleArray, input_groups
from experiments.stages import export, finetune, prepare, pretrain

K = 3
LAYOUT = ObservationLayout(embedding=2, n_offers=K)
COLUMNS = (*LAYOUT.names(), "shoe_size")
PLACE = {name: place for place, name in enumerate(COLUMNS)}
N_USERS, N_WEEKS = 60, 4


@dataclass(frozen=True)
class HandMade:
    """Sends the first offer with a probability that ``chance`` gives of an observation, else nothing."""

    chance: Callable[[FloatArray], FloatArray]
    columns: tuple[str, ...] = COLUMNS
    offers: tuple[str, ...] = ("none", "one", "two")

    def probabilities(self, observation: FloatArray, /) -> FloatArray:
        sent = self.chance(observation)
        return np.stack([1 - sent, sent, np.zeros_like(sent)], axis=1).astype(np.float32)


def input_names(group: str) -> list[str]:
    return [COLUMNS[place] for one in input_groups(COLUMNS) if one.name == group for place in one.columns]


def some_rows(seed: int = 0) -> DecisionRows:
    """Sixty users in four weeks, with everything drawn anew; prices and weeks left are of the week."""
    rng = np.random.default_rng(seed)
    observation = rng.random((N_WEEKS, N_USERS, len(COLUMNS))).astype(np.float32)
    week = np.arange(N_WEEKS)[:, None]
    observation[:, :, PLACE["weeks_left"]] = N_WEEKS - week
    for name in input_names("dual_price"):
        observation[:, :, PLACE[name]] = 0.0
    for k in range(K):
        observation[:, :, PLACE[f"reserve_{k}"]] = 0.1 * k * (week + 1)
        observation[:, :, PLACE[f"allowed_{k}"]] = 1.0
    return DecisionRows(
        observation.reshape(-1, len(COLUMNS)),
        np.tile(np.arange(N_USERS), N_WEEKS),
        np.repeat(np.arange(N_WEEKS), N_USERS),
    )


def ranked(chance: Callable[[FloatArray], FloatArray], net: DoubleArray | None = None) -> list[Driver]:
    rows = some_rows()
    net = np.zeros((len(rows.user), K)) if net is None else net
    return rank_drivers(HandMade(chance), rows, net, repeats=3, rng=np.random.default_rng(1))


def of(name: str) -> Callable[[FloatArray], FloatArray]:
    return lambda observation: observation[:, PLACE[name]]


# Groups -------------------------------------------------------------------------------------------


def test_every_column_of_the_market_is_in_one_group_with_words() -> None:
    groups = input_groups(LAYOUT.names())
    assert sorted(place for group in groups for place in group.columns) == list(range(LAYOUT.width))
    names = [group.name for group in groups]
    assert {"visits", "basket_value", "trips", "uplift", "cost", "reserve", "fatigue"} < set(names)
    assert {"coupon_held", "weeks_left", "promotion", "dual_price", "redemption", "embedding"} < set(names)
    assert len({group.words for group in groups}) == len(groups)


def test_blocks_stay_whole_and_unknown_columns_stand_alone() -> None:
    names = ["uplift_0", "uplift_1", "shoe_size", "glow_0", "glow_1", "glow_2", "gap_0", "gap_2", "cost_0"]
    found = {group.name: group.columns for group in input_groups(names)}
    assert found == {
        "uplift": (0, 1),
        "shoe_size": (2,),
        "glow": (3, 4, 5),
        "gap_0": (6,),
        "gap_2": (7,),
        "cost_0": (8,),
    }
    spoken = {group.name: group.words for group in input_groups(names)}
    assert spoken["shoe_size"] == "shoe size"
    assert spoken["glow"] == "glow of all offers"


def test_a_group_without_the_column_to_sort_by_has_no_direction() -> None:
    (group,) = input_groups(["slow_visit_logit"])
    assert (group.name, group.gauge) == ("visits", None)
    assert group.gauge_values(np.zeros((2, 1), np.float32)) is None


def test_users_are_put_in_order_by_what_the_words_say() -> None:
    rows = np.array([[9.0, 1.0, 2.0], [9.0, 5.0, 0.0]], np.float32)
    for name, expected in (("uplift", [2, 5]), ("cost", [1.5, 2.5]), ("allowed", [3, 5])):
        (group,) = input_groups([f"{name}_{k}" for k in range(3)])
        values = group.gauge_values(rows)
        assert values is not None
        assert values.tolist() == expected


def test_a_column_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="'fatigue' stands twice"):
        input_groups(["fatigue", "weeks_left", "fatigue"])


# Dealing out --------------------------------------------------------------------------------------


def test_switched_gives_each_row_another_of_its_stratum() -> None:
    strata = [np.array([0, 2, 4]), np.array([1, 3]), np.array([5])]
    for seed in range(20):
        donor = switched(strata, 6, np.random.default_rng(seed))
        for stratum in strata:
            assert sorted(donor[stratum]) == sorted(stratum)
        assert (donor[:5] != np.arange(5)).all()
        assert donor[5] == 5


@pytest.mark.parametrize(
    ("values", "low", "high"),
    [
        ([1, 2, 3, 4, 5, 6, 7, 8, 9, 10], [1, 2], [8, 9, 10]),
        ([0, 0, 0, 0, 0, 0, 0, 0, 0, 1], [0] * 9, [1]),
        ([0, 1, 1, 1, 1, 1, 1, 1, 1, 1], [0], [1] * 9),
    ],
)
def test_outer_fifths(values: list[float], low: list[float], high: list[float]) -> None:
    array = np.array(values, dtype=float)
    fifths = outer_fifths(array)
    assert fifths is not None
    assert array[fifths[0]].tolist() == low
    assert array[fifths[1]].tolist() == high


def test_outer_fifths_of_equal_values() -> None:
    assert outer_fifths(np.ones(5)) is None


# Drivers ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("column", ["fatigue", "shoe_size", "notice_probability", "weeks_left", "uplift_1"])
def test_a_policy_that_looks_at_one_column_is_driven_by_its_group_alone(column: str) -> None:
    drivers = ranked(lambda observation: (observation[:, PLACE[column]] / N_WEEKS).astype(np.float32))
    first, *others = drivers
    assert column in first.columns
    assert first.distance is not None
    assert first.distance.value > 0.01
    for other in others:
        if other.dealt_among is not None:
            zero = Measured(0.0, 0.0, 0.0)
            assert (other.distance, other.changed, other.net_uplift_change) == (zero, zero, zero)
            assert other.direction is None or other.direction.effect == 0.0


def test_figures_are_those_of_a_coin() -> None:
    """Half of the users have a 1 and are sent something. Dealt another's value, half change; by hand."""
    rows = some_rows()
    rows.observation[:, PLACE["fatigue"]] = rows.user % 2
    net = np.zeros((len(rows.user), K))
    net[:, 1] = np.where(rows.user % 2, 3.0, -1.0)
    first = rank_drivers(HandMade(of("fatigue")), rows, net, repeats=40, rng=np.random.default_rng(2))[0]
    # A user gets another's value: of the 59 others 30 have the other one.
    expected = 30 / 59
    assert first.name == "fatigue"
    assert first.distance is not None
    assert first.changed is not None
    assert first.net_uplift_change is not None
    assert first.distance.value == pytest.approx(expected, abs=0.02)
    assert first.changed.value == pytest.approx(first.distance.value)
    # Half of the changes lose 3, the other half loses 1 more.
    assert first.net_uplift_change.value == pytest.approx(-expected * (3 + 1) / 2, abs=0.08)
    for found in (first.distance, first.net_uplift_change):
        assert found.ci_low < found.value < found.ci_high
    assert first.direction is not None
    assert (first.direction.sent_low, first.direction.sent_high) == (0.0, 1.0)
    assert first.direction.effect == pytest.approx(1.0, abs=0.1)


def test_what_is_shared_in_a_week_is_dealt_among_weeks_and_what_never_changes_is_not_judged() -> None:
    drivers = {one.name: one for one in ranked(of("reserve_2"))}
    assert drivers["reserve"].dealt_among == "user-weeks"
    assert drivers["weeks_left"].dealt_among == "user-weeks"
    assert drivers["fatigue"].dealt_among == "users"
    price = drivers["dual_price"]
    assert (price.dealt_among, price.distance, price.direction) == (None, None, None)
    assert in_words(price).endswith("the same for all users and weeks that were played; nothing can be said.")


def test_a_users_offers_stay_together() -> None:
    """No user has two different uplifts; if offers were dealt out one by one, some would."""
    rows = some_rows()
    for k in range(K):
        rows.observation[:, PLACE[f"uplift_{k}"]] = rows.user
    seen: list[bool] = []

    def chance(observation: FloatArray) -> FloatArray:
        block = observation[:, [PLACE[f"uplift_{k}"] for k in range(K)]]
        seen.append(bool((block == block[:, :1]).all()))
        return np.asarray(block[:, 0] / N_USERS, dtype=np.float32)

    rank_drivers(
        HandMade(chance), rows, np.zeros((len(rows.user), K)), repeats=1, rng=np.random.default_rng(0)
    )
    assert all(seen)


def test_correlation_alone_is_no_effect() -> None:
    """Who is tired has few trips here. The policy looks at fatigue; by itself, trips change nothing."""
    rows = some_rows()
    rows.observation[:, PLACE["log_slow_trips"]] = -rows.observation[:, PLACE["fatigue"]]
    policy, net = HandMade(of("fatigue")), np.zeros((len(rows.user), K))
    drivers = {
        one.name: one for one in rank_drivers(policy, rows, net, repeats=2, rng=np.random.default_rng(0))
    }
    trips = drivers["trips"].direction
    assert trips is not None
    assert trips.sent_high < trips.sent_low - 0.5
    assert trips.effect == 0.0
    assert in_words(drivers["trips"]).endswith("no decision depends on it.")


@pytest.mark.parametrize(("sign", "word"), [(1, "more"), (-1, "less")])
def test_words_say_the_direction(sign: int, word: str) -> None:
    chance = of("notice_probability")
    driver = ranked(lambda observation: chance(observation) if sign > 0 else 1 - chance(observation))[0]
    said = in_words(driver)
    assert said.startswith("how readily the user redeems coupons: ")
    assert f"points {word} often than users who redeem at most" in said
    assert f"points {word}." in said


def test_words_of_a_known_driver() -> None:
    measured = Measured(0.226, 0.2, 0.25)
    driver = Driver(
        name="visits",
        words="how lately",
        columns=("log_visit_recency",),
        dealt_among="users",
        distance=measured,
        changed=measured,
        net_uplift_change=Measured(-0.0123, -0.02, 0.0),
        direction=Direction("users seen within 1 week", "users unseen for 4 weeks", 0.61, 0.49, -0.004),
    )
    assert in_words(driver) == (
        "how lately: 23% of decisions come out differently without it, and what is sent is predicted to earn "
        "0.012 less a user and week. Users unseen for 4 weeks are sent something 12 points less often than "
        "users seen within 1 week (49% against 61%); by itself, all else equal, it moves that by less than a "
        "point: other inputs make the difference."
    )
    alone = replace(
        driver, direction=Direction("a", "b", 0.50, 0.501, 0.01), net_uplift_change=Measured(0, 0, 0)
    )
    assert in_words(alone).endswith(
        "earn the same. B are sent something as often as a (50% against 50%); "
        "by itself, all else equal, it makes that 1 point more."
    )
    assert in_words(replace(driver, direction=None)).endswith("a user and week.")
    assert "less than 0.1% of" in in_words(replace(driver, distance=Measured(0.0004, 0, 0)))


def test_thresholds_are_said_as_people_read_them() -> None:
    rows = some_rows()
    recency = np.where(rows.user % 2, 1.0, 6.0)
    rows.observation[:, PLACE["log_visit_recency"]] = np.log(recency)
    rows.observation[:, PLACE["coupon_held"]] = rows.user % 3 == 0
    drivers = rank_drivers(
        HandMade(of("fatigue")), rows, np.zeros((len(rows.user), K)), repeats=1, rng=np.random.default_rng(0)
    )
    directions = {one.name: one.direction for one in drivers}
    visits, coupon = directions["visits"], directions["coupon_held"]
    assert visits is not None
    assert (visits.low, visits.high) == (
        "users whose last visit was within 1 week",
        "users whose last visit was 6 weeks ago or longer",
    )
    assert coupon is not None
    assert (coupon.low, coupon.high) == ("users without a coupon", "users who hold a coupon")


def test_equal_seeds_give_equal_figures() -> None:
    assert ranked(of("fatigue")) == ranked(of("fatigue"))


def test_bad_input() -> None:
    rows, rng = some_rows(), np.random.default_rng(0)
    net = np.zeros((len(rows.user), K))
    policy = HandMade(of("fatigue"))
    with pytest.raises(ValueError, match=r"net uplifts \(240, 2\)"):
        rank_drivers(policy, rows, net[:, :2], repeats=1, rng=rng)
    with pytest.raises(ValueError, match="repeats must be >= 1, got 0"):
        rank_drivers(policy, rows, net, repeats=0, rng=rng)
    with pytest.raises(ValueError, match="1 inputs"):
        rank_drivers(replace(policy, columns=("fatigue",)), rows, net, repeats=1, rng=rng)
    with pytest.raises(ValueError, match="rows do not fit together"):
        DecisionRows(rows.observation, rows.user[1:], rows.week)
    with pytest.raises(ValueError, match="1 rows"):
        DecisionRows(rows.observation[:1], rows.user[:1], rows.week[:1])


# A run --------------------------------------------------------------------------------------------


def write_bundle(
    folder: Path,
    graph: Path,
    panel: Panel,
    offers: tuple[Offer, ...] | None = None,
    prices: tuple[float, ...] = (0.7,),
) -> None:
    """Write a bundle around a graph that is exported already; of the other files explaining reads none."""
    folder.mkdir(exist_ok=True)
    for name in REQUIRED:
        (folder / name).write_bytes(b"not read")
    shutil.copyfile(graph, folder / NETWORK_FILE)
    market = demo_market(n_users=2, horizon_weeks=3)
    if offers is not None:
        market = replace(market, catalogue=Catalogue(offers))
    weeks = len(prices)
    facts = PolicyFacts(
        market=market,
        panel=panel,
        columns=market.layout.names(),
        style=UserTextStyle(),
        max_tokens=32,
        plans=[
            BudgetPlan(0.1 * (k + 1), tuple(PlannedWeek(0.1, price, 0.5) for _ in range(3)))
            for k, price in enumerate(prices)
        ],
        default_budget_per_user=0.1 * weeks,
        provenance={"trained_by": "test"},
    )
    (folder / SETTINGS_FILE).unlink()
    write_settings(folder, facts)
    write_manifest(folder)


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained network: the myopic rule, softened."""
    torch.manual_seed(0)
    network = OfferNetwork(OfferNetworkShape(EMBEDDING, len(Catalogue.built_in()), 8))
    path = tmp_path_factory.mktemp("graph") / NETWORK_FILE
    export_network_graph(network, path)
    return path


@pytest.fixture
def bundle(fitted_run: FittedRun, graph: Path, tmp_path: Path) -> Path:
    write_bundle(tmp_path / "bundle", graph, fitted_run.panel)
    return tmp_path / "bundle"


def test_the_played_rows_are_the_policys_own(fitted_run: FittedRun, bundle: Path) -> None:
    """Two worlds share the users; each week's net uplift is uplift less price times use, from its columns."""
    market = demo_market(n_users=12, horizon_weeks=3)
    worlds = tuple(replace(market.predictor, name=name) for name in ("judge 1", "judge 2"))
    # Campaigns of the demo market start late in its calendar: after the training weeks of this panel.
    parts = MarketParts(market, worlds, worlds, torch.arange(4), torch.arange(4, 12), fitted_run.panel)
    policy = ObservationPolicy.load(bundle)
    rows, net = played_rows(policy, parts, [0.5, 2.0], n_users=6, seed=0)
    assert rows.observation.shape == (2 * 3 * 6, len(policy.columns))
    assert sorted(set(rows.user)) == list(range(6))
    assert len(set(rows.week)) == 2 * 2 * 3
    place = {name: k for k, name in enumerate(policy.columns)}
    assert set(np.exp(rows.observation[:, place["log_dual_price"]]).round(3)) == {0.5, 2.0}
    assert set(rows.observation[:, place["weeks_left"]]) == {1.0, 2.0, 3.0}

    def block(name: str) -> FloatArray:
        return rows.observation[:, [place[f"{name}_{k}"] for k in range(len(policy.offers))]]

    price = np.exp(rows.observation[:, place["log_dual_price"]])[:, None]
    np.testing.assert_allclose(
        net, block("uplift") - price * (block("cost") + block("reserve")), rtol=1e-5, atol=1e-6
    )
    # At every price the same users start alike.
    first = rows.week == 0
    again = rows.week == 2 * 3
    free = [k for name, k in place.items() if name != "log_dual_price" and not name.startswith("reserve")]
    np.testing.assert_array_equal(rows.observation[first][:, free], rows.observation[again][:, free])


@dataclass(frozen=True)
class Silent:
    """Sends nothing, and knows only two columns of the market's."""

    offers: tuple[str, ...]
    columns: tuple[str, ...] = ("weeks_left", "visit_probability")

    def probabilities(self, observation: FloatArray, /) -> FloatArray:
        assert observation.shape[1] == len(self.columns)
        return np.eye(1, len(self.offers), dtype=np.float32).repeat(len(observation), axis=0)


def test_rows_hold_the_policys_own_columns_in_its_order(fitted_run: FittedRun) -> None:
    market = demo_market(n_users=5, horizon_weeks=2)
    users = torch.arange(5)
    parts = MarketParts(market, (market.predictor,), (market.predictor,), users, users, fitted_run.panel)
    policy = Silent(tuple(offer.name for offer in market.catalogue.offers))
    rows, net = played_rows(policy, parts, [1.0], n_users=9, seed=0)
    assert rows.observation.shape == (10, 2)
    assert rows.observation[:, 0].tolist() == [2.0] * 5 + [1.0] * 5
    assert ((rows.observation[:, 1] > 0) & (rows.observation[:, 1] < 1)).all()
    assert net.shape == (10, len(policy.offers))


def test_columns_are_found_by_name(bundle: Path) -> None:
    policy = ObservationPolicy.load(bundle)
    names = ["new_column", *reversed(policy.columns)]
    served = ServedPolicy(policy, names)
    rows = np.random.default_rng(0).random((5, len(policy.columns))).astype(np.float32)
    rows[:, policy.columns.index("allowed_0")] = 1.0
    turned = torch.from_numpy(np.concatenate([rows[:, :1], rows[:, ::-1]], axis=1))
    mask = torch.ones(5, len(policy.offers), dtype=torch.bool)
    np.testing.assert_array_equal(served.probabilities(turned, mask).numpy(), policy.probabilities(rows))
    with pytest.raises(ConfigError, match="needs the column 'visit_probability'"):
        ServedPolicy(policy, [name for name in names if name != "visit_probability"])


@pytest.fixture
def run_folder(fitted_run: FittedRun, graph: Path, tmp_path: Path) -> Path:
    """The fitted run on disk with a policy exported, as the stages would have left it."""
    folder = tmp_path / "run"
    (folder / STATE_FOLDER).mkdir(parents=True)
    for stage in (prepare.STAGE, pretrain.STAGE, finetune.STAGE, export.STAGE):
        (folder / stage.folder).mkdir()
        write_record(folder, stage.name, StageRecord("print", {}, status="complete"))
    panel, heads, table = fitted_run.panel, fitted_run.heads, fitted_run.embeddings
    panel.save(folder / "prepared" / PANEL_FILE)
    fitted_run.targeting.save(folder / "prepared" / TARGETING_FILE)
    fitted_run.tokenizer.save(str(folder / "encoder" / TOKENIZER_FILE))
    response = folder / "response"
    save_module(heads, response / HEADS_FILE)
    save_arrays(response / EMBEDDINGS_FILE, start_week=table.start_week, embedding=table.embedding.numpy())
    save_simulators(
        response,
        [SimulatorRecord(role, HEADS_FILE, AssumedResponse.central()) for role in ("train", "judge")],
        np.arange(4),
        np.arange(4, panel.n_users),
    )
    config = replace(fitted_run.config, market=MarketConfig(horizon_weeks=3))
    write_json(folder / "manifest.json", {"config": config.to_dict()})
    write_json(folder / "results.json", {"response": dict(fitted_run.response)})
    assert heads.embedding == EMBEDDING
    write_bundle(folder / export.STAGE.folder, graph, panel, prices=(2.0, 0.5))
    return folder


def test_a_run_is_explained(run_folder: Path, fitted_run: FittedRun) -> None:
    """The untrained network is the myopic rule: context says nothing, uplift, use and price all."""
    found = explain_policy.explain_policy(run_folder)
    n = fitted_run.panel.n_users - 4
    assert found.dual_prices == pytest.approx([0.5, 2.0])
    assert (found.n_users, found.user_weeks) == (n, 2 * 3 * n)
    drivers = {one.name: one for one in found.drivers}
    for name in ("visits", "basket_value", "fatigue", "redemption", "embedding", "coupon_held"):
        distance = drivers[name].distance
        assert distance is None or distance.value < 1e-6, name
    first = drivers["uplift"].distance
    assert first is not None
    assert first.value > 1e-3
    assert 0.0 < found.sent < 1.0
    shares = [one.distance.value for one in found.drivers if one.distance is not None]
    assert shares == sorted(shares, reverse=True)
    written = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert written["caveat"] == CAVEAT
    assert written["drivers"][0]["sentence"] == in_words(found.drivers[0])
    assert {"name", "words", "columns", "dealt_among", "distance", "changed", "direction"} < set(
        written["drivers"][0]
    )
    assert set(written["drivers"][0]["distance"]) == {"value", "ci_low", "ci_high"}
    assert explain_policy.explain_policy(run_folder) == found


def test_equal_prices_are_played_once(run_folder: Path, graph: Path, fitted_run: FittedRun) -> None:
    write_bundle(run_folder / "export", graph, fitted_run.panel, prices=(0.7, 0.7))
    assert explain_policy.explain_policy(run_folder).dual_prices == pytest.approx([0.7])


@pytest.mark.parametrize("status", [None, "interrupted"])
def test_nothing_is_exported(run_folder: Path, status: str | None) -> None:
    if status is None:
        (run_folder / STATE_FOLDER / "export.json").unlink()
    else:
        write_record(run_folder, "export", StageRecord("print", {}, status="interrupted"))
    with pytest.raises(ConfigError, match="stage export is not complete; run: couponlab export --out"):
        explain_policy.explain_policy(run_folder)


def test_an_altered_or_foreign_export_is_refused(
    run_folder: Path, graph: Path, fitted_run: FittedRun
) -> None:
    folder = run_folder / "export"
    write_bundle(folder, graph, fitted_run.panel, offers=Catalogue.built_in().offers[:4])
    with pytest.raises(ConfigError, match="but the run's catalogue has no offer, push only"):
        explain_policy.explain_policy(run_folder)
    (folder / "policy.json").write_text("{}")
    with pytest.raises(BundleError, match="altered"):
        explain_policy.explain_policy(run_folder)


def test_shown_is_what_is_in_the_json() -> None:
    found = PolicyExplanation(ranked(of("fatigue")), [0.5, 2.0], N_USERS, N_USERS * N_WEEKS, 0.5, 0.1, 3)
    console = Console(width=300, record=True, no_color=True, file=open("/dev/null", "w"))  # noqa: SIM115
    show_policy(console, found)
    text = console.export_text()
    for driver in found.drivers:
        assert driver.words in text
        assert in_words(driver) in text
    assert CAVEAT in text
    assert "240 decisions about 60 users, at dual prices 0.5, 2: something is sent in 50%" in text


def test_command(run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(explain_policy, "REPEATS", 1)
    target = tmp_path / "policy.json"
    words = ["explain", "policy", "--out", str(run_folder), "--json", str(target)]
    result = CliRunner().invoke(cli.app, words)
    assert result.exit_code == 0, result.output
    assert "how much each offer is predicted to bring" in result.output
    assert "What this does not say" in result.output
    written = json.loads(target.read_text())
    assert written["repeats"] == 1
    assert {"drivers", "dual_prices", "user_weeks", "caveat"} <= set(written)
    nowhere = CliRunner().invoke(cli.app, [*words[:3], str(tmp_path), *words[4:]])
    assert nowhere.exit_code == 2
    assert "is not a run folder" in nowhere.output
    refused = CliRunner().invoke(cli.app, [*words[:-1], str(tmp_path / "absent" / "x.json")])
    assert refused.exit_code == 2
    assert "no such folder" in refused.output
