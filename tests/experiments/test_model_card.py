from __future__ import annotations

from typing import Any

import pytest

from envs.demo_market import demo_market
from experiments.model_card import model_card
from experiments.stage import StageError
from experiments.stages import export


def results() -> dict[str, Any]:
    scores = {"log_loss": 0.1664, "auc": 0.8432, "average_precision": 0.32, "ece": 0.0026}
    policy = {
        "n_users": 1222,
        "budget": 61.0,
        "spend": 60.5,
        "incremental_margin": 700.0,
        "budget_multiple": 1.0,
    }
    ends = {"ci_low": 600.0, "ci_high": 800.0, "world_low": 500.0, "world_high": 900.0}
    return {
        "data": {
            "origin": "a shop",
            "content_hash": "abc",
            "n_users": 2444,
            "n_weeks": 48,
            "n_categories": 120,
            "purchase_rate": 0.0537,
            "visit_rate": 0.524,
            "split": {"train_end": 40, "tune_end": 44, "report_end": 48},
            "notes": ["dropped 3 lines"],
        },
        "fidelity": {"split": "45-48", "rows": 1173120, **scores}
        | {
            name: scores | {"auc": auc}
            for name, auc in (("lightgbm", 0.8407), ("frequency", 0.8269), ("no_text", 0.8424))
        },
        "policies": [{"name": "PPO", **policy, **ends}],
        "pacing": [
            {
                "policy": name,
                "budget_multiple": 1.0,
                "planned": [12.22, 48.88],
                "dual_price": [2.0, 1.0],
                "pressure": [0.5, 0.0],
            }
            for name in ("random", "PPO")
        ],
        "comparison": [
            {"name": "PPO", "baseline": "no offer", "budget_multiple": 1.0, "difference": 700.0, **ends}
        ],
        "ope": [
            {
                "policy": "PPO",
                "estimator": "IPS",
                "value": 35.6,
                "verdict": "do not use",
                "reason": "ESS | 87",
            },
            {"policy": "PPO", "estimator": "DR", "value": None, "verdict": "do not use", "reason": None},
            {"policy": "other", "estimator": "SNIPS", "value": 1.0, "verdict": "trust", "reason": None},
        ],
        "response": {
            "fitted": [
                {"name": "depth effect", "value": 2.5796, "unit": "log odds", "source": "weeks up to 40"}
            ],
            "assumed": [
                {
                    "name": "message_lift",
                    "low": 0.03,
                    "central": 0.08,
                    "high": 0.15,
                    "meaning": "added",
                    "source": "a guess",
                }
            ],
        },
    }


def test_the_card_says_what_the_results_say() -> None:
    market = demo_market(n_users=2)
    card = model_card(results(), market, seed=7)
    for said in (
        "- Source: a shop (sha256 abc)",
        "2,444 users, 48 weeks read, 120 categories",
        "trained up to 40, tuned on 41-44, reported on 45-48",
        "- dropped 3 lines",
        "| LightGBM | 0.1664 | 0.8407 | 0.3200 | 0.0026 |",
        "| PPO | 61 | 60 | 700 (600 to 800) | 500 to 900 |",
        "| PPO less no offer | 1 | 700 (600 to 800) |",
        "No estimator may be trusted without reservation",
        "| IPS | reward | 35.6 | do not use | ESS \\| 87 |",
        "| DR | reward | – | do not use | – |",
        "| depth effect | 2.58 | log odds | weeks up to 40 |",
        "| message_lift | 0.03 | 0.08 | 0.15 | added | a guess |",
        "at most 6 messages in 8 weeks",
        "## Limits",
    ):
        assert said in card, said
    assert "SNIPS" not in card
    for offer in market.catalogue.offers:
        assert f"| {offer.name} |" in card


def test_an_estimator_without_reservation_is_named() -> None:
    content = results()
    content["ope"].append(
        {"policy": "PPO", "estimator": "DR", "value": 70.0, "verdict": "trust", "reason": ""}
    )
    card = model_card(content, demo_market(n_users=2), seed=7)
    assert "Estimators without a reservation: DR." in card


def test_plans_are_of_a_user() -> None:
    (plan,) = export.budget_plans(results())
    assert plan.budget_per_user == pytest.approx(61.0 / 1222)
    assert [week.planned_spend for week in plan.weeks] == pytest.approx([0.01, 0.04])
    assert [(week.dual_price, week.pressure) for week in plan.weeks] == [(2.0, 0.5), (1.0, 0.0)]


def test_signing_keys(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(export.KEY_VARIABLE, raising=False)
    assert export.signing_key() is None
    path = tmp_path / "key"
    monkeypatch.setenv(export.KEY_VARIABLE, str(path))
    with pytest.raises(StageError, match=export.KEY_VARIABLE):
        export.signing_key()
    key = bytes(range(32))
    for content in (key, key.hex().encode() + b"\n"):
        path.write_bytes(content)
        assert export.signing_key() == key
    path.write_bytes(b"short")
    with pytest.raises(StageError, match="neither 32 raw bytes nor their hexadecimal digits"):
        export.signing_key()


def test_the_card_names_a_folder_of_logs_without_its_path() -> None:
    found = results()
    found["data"]["origin"] = "/home/ann/shop-logs"
    card = model_card(found, demo_market(n_users=2), seed=7)
    assert "- Source: shop-logs (sha256 abc)" in card
    assert "ann" not in card.split("## Data")[1].split("##")[0]
