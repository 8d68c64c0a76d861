from __future__ import annotations

import json
from dataclasses import replace
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from typer.testing import CliRunner

from experiments import cli
from experiments.config import ConfigError
from experiments.fitted_run import FittedRun
from experiments.manifest import to_json
from experiments.profile.build import choose_week, find_user, profile_user
from experiments.profile.tables import show_profile


def test_find_user(fitted_run: FittedRun) -> None:
    panel = fitted_run.panel
    assert find_user(panel, "ab10") == 1
    assert find_user(panel, "c5") == 5
    ids = panel.user_ids.copy()
    ids[4] = "ab"
    # One pseudonym may begin another.
    assert find_user(replace(panel, user_ids=ids), "ab") == 4


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("zz", "no user's pseudonym is or begins with 'zz'; one of the 9 users is ab00"),
        ("ab", "'ab' begins the pseudonyms of 2 users, ab00 and ab10 among them; give more"),
        ("", "'' begins the pseudonyms of 9 users, ab00 and ab10 among them; give more"),
    ],
)
def test_unknown_and_ambiguous_users(fitted_run: FittedRun, name: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        find_user(fitted_run.panel, name)
    assert str(caught.value) == message


def test_week(fitted_run: FittedRun) -> None:
    assert choose_week(fitted_run, None) == 17
    assert choose_week(fitted_run, 5) == 5
    assert choose_week(fitted_run, 21) == 21
    # The log has 26 weeks; the last five are locked.
    for week in (0, 4, 22, 26):
        with pytest.raises(ConfigError, match="choose a week from 5 to 21, for example 17"):
            choose_week(fitted_run, week)


def test_price_sensitivity_in_closed_form(fitted_run: FittedRun) -> None:
    heads = fitted_run.heads
    found = profile_user(fitted_run, 3, 17).price
    embedding = fitted_run.embeddings.embedding[3].double().numpy()
    level = heads.depth_level.double().numpy() + (embedding @ heads.depth_embedding.double().numpy())[:, None]
    theta = (1.2 * np.log1p(np.exp(level)) / 0.1).mean(axis=1)
    assert found.value == pytest.approx(theta[3], rel=1e-5)
    assert found.median == pytest.approx(np.median(theta), rel=1e-5)
    assert found.percentile == pytest.approx(((theta < theta[3]).sum() + 0.5) / 9)
    assert profile_user(fitted_run, 3, 17).price_odds == pytest.approx(np.exp(0.2 * theta[3]), rel=1e-5)


def test_campaigns_are_those_that_had_begun(fitted_run: FittedRun) -> None:
    found = profile_user(fitted_run, 0, 17)
    assert [(one.campaign, one.week, one.redeemed) for one in found.campaigns] == [
        ("early", 3, False),
        ("middle", 10, True),
    ]
    assert found.redeemed_share == 0.25
    early = profile_user(fitted_run, 0, 10)
    assert [one.campaign for one in early.campaigns] == ["early"]
    assert profile_user(fitted_run, 5, 17).campaigns == []


def test_an_embedding_serves_until_the_next(fitted_run: FittedRun) -> None:
    found = profile_user(fitted_run, 2, 15)
    assert (found.week, found.embedded_week) == (15, 13)
    assert found.text == profile_user(fitted_run, 2, 13).text
    assert found.neighbours.population_cosine == profile_user(fitted_run, 2, 13).neighbours.population_cosine


def test_nothing_of_the_week_or_later_is_used(fitted_run: FittedRun) -> None:
    """Whatever users do from week 15 on, their profiles at week 15 stay as they are."""
    panel, table, targeting = fitted_run.panel, fitted_run.embeddings, fitted_run.targeting
    changed = {
        name: getattr(panel, name).copy()
        for name in ("bought", "visited", "trips", "coupon_used", "basket_spend", "category_spend")
    }
    for values in changed.values():
        values[:, 14:] = 1
    promotions = {name: getattr(panel, name).copy() for name in ("promotion_depth", "display", "mailer")}
    for values in promotions.values():
        values[15:] = 0.9
    embedding = table.embedding.clone()
    embedding[table.start_week >= 15] += 9.0
    late = np.where(targeting.start_week >= 15, ~targeting.redeemed, targeting.redeemed)
    other = replace(
        fitted_run,
        panel=replace(panel, **changed, **promotions),
        embeddings=replace(table, embedding=embedding),
        targeting=replace(targeting, redeemed=late),
    )
    assert profile_user(other, 0, 15) == profile_user(fitted_run, 0, 15)


def test_text_that_is_cut_is_said_to_be(fitted_run: FittedRun) -> None:
    config = fitted_run.config
    short = replace(fitted_run, config=replace(config, text=replace(config.text, max_tokens=8)))
    found = profile_user(short, 1, 17)
    assert found.text.startswith("age 35")
    assert found.text_tokens == len(found.text.replace(",", " ").split()) + found.text.count(",")
    shown = show(short, 1)
    assert f"{found.text_tokens} tokens, of which it reads 8" in shown
    assert "of which it reads" not in show(fitted_run, 1)


def show(run: FittedRun, user: int) -> str:
    console = Console(width=300, no_color=True, file=StringIO(), record=True)
    show_profile(console, profile_user(run, user, 17))
    return console.export_text()


def test_tables_hold_the_profile(fitted_run: FittedRun) -> None:
    found, shown = profile_user(fitted_run, 0, 17), show(fitted_run, 0)
    assert f"User ab00 at the start of week 17: {found.segment.name}" in shown
    for row in found.favourites:
        assert row.category in shown
    for effect in found.channels.effects:
        assert effect.what in shown
        assert effect.basis in shown
        assert f"{effect.margin:.3f}" in shown
    assert "2 received, 1 redeemed (middle in week 10); among all users 25%" in shown
    for one in found.neighbours.nearest:
        assert one.user in shown
    for change in (*found.drift.rising, *found.drift.falling):
        assert change.category in shown
    assert found.price.source in shown
    assert found.text in shown
    json.dumps(to_json(found.to_dict()), allow_nan=False)


def test_command(fitted_run: FittedRun, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(FittedRun, "load", lambda folder: fitted_run)
    target = tmp_path / "profile.json"
    result = CliRunner().invoke(cli.app, ["profile", "ab0", "--week", "13", "--json", str(target)])
    assert result.exit_code == 0, result.output
    assert "User ab00 at the start of week 13" in result.output
    assert json.loads(target.read_text()) == to_json(profile_user(fitted_run, 0, 13).to_dict())
    for words, message in (
        (["ab"], "Error: 'ab' begins the pseudonyms of 2 users"),
        (["ab0", "--week", "22"], "Error: --week 22: choose a week from 5 to 21"),
        (["ab0", "--json", str(tmp_path / "absent" / "x.json")], "no such folder"),
    ):
        refused = CliRunner().invoke(cli.app, ["profile", *words])
        assert refused.exit_code == 2
        assert message in refused.output.replace("\n", " ")
        assert "Traceback" not in refused.output
