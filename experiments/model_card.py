"""The card that travels with an exported policy: what it was made of, what it is worth, and what it is not.

Every figure is taken from the run's results; nothing is reckoned here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from agents.offer_network import LearnedPolicy
from encoders.weeks import LOCKED_WEEKS
from envs.campaign import MarketSpec

Row = Mapping[str, Any]

_PEERS = (
    ("this model", None),
    ("LightGBM", "lightgbm"),
    ("frequency", "frequency"),
    ("without text", "no_text"),
)
_SCORES = (
    ("log loss", "log_loss"),
    ("AUC", "auc"),
    ("average precision", "average_precision"),
    ("ECE", "ece"),
)


def model_card(results: Row, market: MarketSpec, *, seed: int) -> str:
    """Return the card as Markdown.

    Args:
        results: of the run up to the evaluation, the back-test included.
        market: that the policy was trained for.
        seed: of the run.
    """
    sections = [
        "# Model card: coupon policy",
        _use(market, seed),
        _data(results["data"]),
        _fidelity(results["fidelity"]),
        _policies(results["policies"], results["comparison"]),
        _ope(results["ope"]),
        _fitted(results["response"]["fitted"]),
        _assumed(results["response"]["assumed"]),
        _LIMITS,
    ]
    return "\n\n".join(sections) + "\n"


def _use(market: MarketSpec, seed: int) -> str:
    cap = market.catalogue.cap
    capped = "no frequency cap" if cap is None else f"at most {cap.messages} messages in {cap.weeks} weeks"
    return (
        "## Use\n\n"
        "Decides once a week, for each user, which of the offers below to send, if any, so that the margin "
        "added under a fixed budget is as large as it can be. It is stochastic: each decision comes with its "
        "propensity, which must be logged.\n\n"
        f"Campaigns of up to {market.horizon_weeks} weeks; {capped}; seed {seed}.\n\n"
        + _table(
            ("offer", "kind", "channel", "validity, weeks", "most discount", "delivery"),
            [
                (
                    offer.name,
                    offer.kind.value,
                    offer.channel.value if offer.kind.value != "none" else "–",
                    str(offer.validity_weeks),
                    f"{offer.max_discount:.2f}",
                    f"{offer.delivery_cost:.2f}",
                )
                for offer in market.catalogue.offers
            ],
        )
    )


def _data(data: Row) -> str:
    trained, tuned, reported = (data["split"][end] for end in ("train_end", "tune_end", "report_end"))
    lines = [
        "## Data",
        "",
        f"- Source: {_source(data['origin'])} (sha256 {data['content_hash']})",
        f"- {data['n_users']:,} users, {data['n_weeks']} weeks read, {data['n_categories']} categories",
        f"- Weeks: trained up to {trained}, tuned on {trained + 1}-{tuned}, reported on "
        f"{tuned + 1}-{reported}; the log's last {LOCKED_WEEKS} are locked and were read by nothing",
        f"- Purchase rate of a user, week and category {data['purchase_rate']:.2%}",
        f"- Visit rate of a user and week {data['visit_rate']:.1%}",
    ]
    return "\n".join([*lines, *(f"- {note}" for note in data["notes"])])


def _fidelity(fidelity: Row) -> str:
    rows = []
    for name, key in _PEERS:
        scores = fidelity if key is None else fidelity[key]
        rows.append((name, *(f"{scores[score]:.4f}" for _, score in _SCORES)))
    return (
        "## Fidelity of the response model\n\n"
        f"Purchases in weeks {fidelity['split']}, {fidelity['rows']:,} rows of a user, week and category; "
        "the same rows for all.\n\n" + _table(("model", *(name for name, _ in _SCORES)), rows)
    )


def _policies(policies: Sequence[Row], comparison: Sequence[Row]) -> str:
    played = [
        (
            row["name"],
            f"{row['budget']:.0f}",
            f"{row['spend']:.0f}",
            f"{row['incremental_margin']:.0f} ({row['ci_low']:.0f} to {row['ci_high']:.0f})",
            f"{row['world_low']:.0f} to {row['world_high']:.0f}",
        )
        for row in policies
    ]
    paired = [
        (
            f"{row['name']} less {row['baseline']}",
            f"{row['budget_multiple']:g}",
            f"{row['difference']:.0f} ({row['ci_low']:.0f} to {row['ci_high']:.0f})",
        )
        for row in comparison
    ]
    users = policies[0]["n_users"] if policies else 0
    return (
        "## Policies\n\n"
        f"Margin added over sending nothing, for {users:,} users together, in simulators fitted on others "
        "than those the policy was trained with; 95% intervals, and the range over simulators.\n\n"
        + _table(("policy", "budget", "spend", "margin added", "by simulator"), played)
        + "\n\nDifferences, paired by user and campaign:\n\n"
        + _table(("", "times the budget", "margin"), paired)
    )


def _ope(rows: Sequence[Row]) -> str:
    own = [row for row in rows if row["policy"] == LearnedPolicy.name]
    table = _table(
        ("estimator", "outcome", "estimate", "verdict", "why"),
        [
            (
                row["estimator"],
                row.get("outcome", "reward"),
                _number(row["value"]),
                row["verdict"],
                row.get("reason") or "–",
            )
            for row in own
        ],
    )
    usable = [row["estimator"] for row in own if row["verdict"] == "trust"]
    said = (
        f"Estimators without a reservation: {', '.join(dict.fromkeys(usable))}."
        if usable
        else "No estimator may be trusted without reservation on this log: do not rest a decision on them."
    )
    head = "## Off-policy evaluation\n\nFrom one logged campaign, at a fixed path of dual prices."
    return f"{head} {said}\n\n{table}"


def _fitted(rows: Sequence[Row]) -> str:
    return "## Fitted parameters\n\n" + _table(
        ("parameter", "value", "unit", "source"),
        [(row["name"], _number(row["value"]), row["unit"], row["source"]) for row in rows],
    )


def _assumed(rows: Sequence[Row]) -> str:
    return (
        "## Assumed parameters\n\n"
        "The logs say nothing of these. Simulators draw them from the ranges; the policy believes the "
        "central values.\n\n"
        + _table(
            ("parameter", "low", "central", "high", "meaning", "source"),
            [
                (
                    row["name"],
                    *(f"{row[end]:g}" for end in ("low", "central", "high")),
                    row["meaning"],
                    row["source"],
                )
                for row in rows
            ],
        )
    )


_LIMITS = """## Limits

- What a coupon or message does to visits is assumed, not measured: targeting in the log was not random. The
  margin added is a forecast under the ranges above; an A/B test decides.
- All users share one budget. The policy keeps to it through the dual price of the context; the ledger of the
  service enforces it. Estimates at a fixed price path say nothing of a campaign whose prices move otherwise.
- Promotions, prices and assortment are taken as the shop plans them; competitors do not answer.
- Users whose history looks like none in the log are outside of what was learnt; watch drift with
  `couponlab monitor`.
- Profiles go into the user text. What they may be used for is for the shop's lawyers to say; the report of
  the run shows exposure by group.
- One decision a user and week. Asking more often is not what was evaluated."""


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _source(origin: str) -> str:
    """Return where the logs come from; of a folder its name only, for a card travels and a path does not."""
    return Path(origin).name if Path(origin).is_absolute() else origin
