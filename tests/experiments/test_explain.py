from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner

from encoders.calendar import PromotionCalendar
from encoders.history import CATEGORY_FEATURES, USER_FEATURES, HistoryState
from encoders.history_tape import HistoryTape
from experiments import cli
from experiments.explain import (
    PRODUCTS,
    TEXT,
    HeadInfluences,
    Influence,
    explain_response,
    feature_words,
    in_words,
    show_response,
)
from experiments.fitted_run import FittedRun


def test_every_feature_has_words_of_its_own() -> None:
    names = (*CATEGORY_FEATURES, *USER_FEATURES)
    assert len({feature_words(name) for name in names}) == len(names)
    assert feature_words("bought_1_week_ago") == "whether the category was bought last week"
    assert feature_words("log_basket_3_weeks_ago") == "how many categories were bought 3 weeks ago"
    with pytest.raises(ValueError, match="no words for the feature 'shoe_size'"):
        feature_words("shoe_size")


def found_in(run: FittedRun) -> dict[str, dict[str, Influence]]:
    return {one.head: {i.feature: i for i in one.influences} for one in explain_response(run).heads}


def test_coefficients_are_calibrated_means_over_categories(fitted_run: FittedRun) -> None:
    heads, found = fitted_run.heads, found_in(fitted_run)
    for f, name in enumerate(CATEGORY_FEATURES):
        own = 1.2 * heads.purchase_features[:, f].double().numpy()
        assert found["purchase"][name].coefficient == pytest.approx(own.mean(), abs=1e-6)
        assert found["purchase"][name].size == pytest.approx(np.abs(own).mean(), abs=1e-6)
    for g, name in enumerate(USER_FEATURES):
        own = 1.2 * heads.purchase_user[:, g].double().numpy()
        assert found["purchase"][name].size == pytest.approx(np.abs(own).mean(), abs=1e-6)
        trips = float(heads.trips_features[g])
        assert found["trips"][name].coefficient == pytest.approx(trips, abs=1e-6)
        assert found["trips"][name].size == pytest.approx(abs(trips), abs=1e-6)
    assert TEXT not in found["trips"]


def test_coefficients_are_slopes_of_the_model_at_the_average_user(fitted_run: FittedRun) -> None:
    """Whatever the terms of a head: its predictor changes by the coefficient per standard deviation."""
    heads, found = copy.deepcopy(fitted_run.heads), found_in(fitted_run)
    # Nobody's own rates are average in all categories; with them goes a product, which has no one direction.
    heads.purchase_rate_user.zero_()
    average = torch.zeros(1, len(USER_FEATURES), requires_grad=True)
    state = HistoryState.empty(1, heads.n_categories)
    heads.standard_user_features = lambda state: average  # type: ignore[method-assign]
    predicted = heads(state, torch.zeros(1, heads.embedding), same_week(heads.n_categories))
    outputs = {
        "visit": predicted.visit.sum(),
        "purchase": predicted.purchase.mean(),
        "spend": predicted.log_spend.mean(),
        "trips": heads.mean_further_trips(state).log().sum(),
        "redemption": heads.redemption_logit(state, torch.zeros(1, heads.embedding)).sum(),
    }
    for head, output in outputs.items():
        (slope,) = torch.autograd.grad(output, average, retain_graph=True)
        stated = np.array([found[head][name].coefficient for name in USER_FEATURES], dtype=float)
        np.testing.assert_allclose(stated, slope[0].numpy(), atol=1e-5, err_msg=head)


def same_week(n_categories: int) -> PromotionCalendar:
    zero = torch.zeros(n_categories)
    return PromotionCalendar(zero, zero, zero, zero, torch.zeros(()), torch.zeros(()))


def test_size_of_the_text_is_what_it_moves_the_model_by(fitted_run: FittedRun) -> None:
    """The spread over users of what the embedding adds to the prediction."""
    heads, embedding = fitted_run.heads, fitted_run.embeddings.embedding[-1]
    same = HistoryState.empty(len(embedding), heads.n_categories)
    predicted = heads(same, embedding, same_week(heads.n_categories))
    own = HistoryTape.of_panel(fitted_run.panel).week(16)
    calendar = same_week(heads.n_categories)
    added = heads(own, embedding, calendar).purchase - heads(own, 0 * embedding, calendar).purchase
    found = found_in(fitted_run)
    expected = {
        "purchase": added,
        "spend": predicted.log_spend,
        "redemption": heads.redemption_logit(same, embedding)[:, None],
    }
    for head, values in expected.items():
        spread = values.double().numpy().std(axis=0).mean()
        assert found[head][TEXT].size == pytest.approx(spread, rel=1e-3), head
    assert explain_response(fitted_run).depth_spread == pytest.approx(
        predicted.depth_slope.double().numpy().std(axis=0).mean(), rel=1e-3
    )


def test_size_of_the_products_is_what_they_move_visits_by(fitted_run: FittedRun) -> None:
    heads = fitted_run.heads
    state = HistoryTape.of_panel(fitted_run.panel).week(16)
    whole = heads.visit_logit(state, same_week(heads.n_categories))
    plain = copy.deepcopy(heads)
    plain.visit_user[len(USER_FEATURES) :] = 0.0
    products = whole - plain.visit_logit(state, same_week(heads.n_categories))
    size = found_in(fitted_run)["visit"][PRODUCTS].size
    assert size == pytest.approx(products.double().numpy().std(), rel=1e-3)
    assert size > 0


def test_size_of_the_products_of_purchases_counts_those_with_the_own_rate(fitted_run: FittedRun) -> None:
    heads = fitted_run.heads
    state = HistoryTape.of_panel(fitted_run.panel).week(16)
    embedding, calendar = fitted_run.embeddings.embedding[-1], same_week(heads.n_categories)
    plain = copy.deepcopy(heads)
    plain.purchase_user[:, len(USER_FEATURES) :] = 0.0
    plain.purchase_rate_user.zero_()
    products = heads(state, embedding, calendar).purchase - plain(state, embedding, calendar).purchase
    size = found_in(fitted_run)["purchase"][PRODUCTS].size
    assert size == pytest.approx(products.double().numpy().std(axis=0).mean(), rel=1e-3)


def test_influences_are_ordered_by_size(fitted_run: FittedRun) -> None:
    for head in explain_response(fitted_run).heads:
        sizes = [one.size for one in head.influences]
        assert sizes == sorted(sizes, reverse=True)


def test_trips_are_left_out_where_nobody_shops_twice(fitted_run: FittedRun) -> None:
    names = [head.head for head in explain_response(fitted_run).heads]
    assert names == ["visit", "trips", "purchase", "spend", "redemption"]
    panel = replace(fitted_run.panel, trips=fitted_run.panel.visited.astype(np.uint8))
    assert "trips" not in [head.head for head in explain_response(replace(fitted_run, panel=panel)).heads]


def test_in_words() -> None:
    influences = [
        Influence("a", "being near", float(np.log(2)), 0.7),
        Influence(TEXT, "the text", None, 0.25),
    ]
    said = in_words(HeadInfluences("visit", "log odds", influences))
    assert said == "visit: above all being near (odds ×2.00); then the text (±0.25); per standard deviation."


def test_shown_is_what_is_in_the_json(fitted_run: FittedRun) -> None:
    found = explain_response(fitted_run)
    console = Console(width=400, record=True, no_color=True, file=open("/dev/null", "w"))  # noqa: SIM115
    show_response(console, found)
    text = console.export_text()
    for row in (*found.fitted, *found.assumed):
        assert row["name"].replace("_", " ") in text
        assert row["source"] in text
    for row in found.fitted:
        if "by_category" in row:
            assert f"{row['by_category']['highest']:.3g} {row['by_category']['highest_category']}" in text
    for head in found.heads:
        assert in_words(head) in text
    json.dumps(found.to_dict(), allow_nan=False)


def test_command(fitted_run: FittedRun, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[Path] = []

    def load(folder: Path) -> FittedRun:
        asked.append(folder)
        return fitted_run

    monkeypatch.setattr(FittedRun, "load", load)
    target = tmp_path / "response.json"
    words = ["explain", "response", "--out", "my-run", "--json", str(target)]
    result = CliRunner().invoke(cli.app, words)
    assert result.exit_code == 0, result.output
    assert "depth effect" in result.output
    assert asked == [Path("my-run")]
    written = json.loads(target.read_text())
    assert written["week"] == 17
    assert [row["name"] for row in written["fitted"]] == [
        row["name"] for row in fitted_run.response["fitted"]
    ]
    refused = CliRunner().invoke(cli.app, [*words[:-1], str(tmp_path / "absent" / "x.json")])
    assert refused.exit_code == 2
    assert "no such folder" in refused.output
