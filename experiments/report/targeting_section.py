"""Past campaigns: who was targeted, how far that can be undone, and what can honestly be said."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from experiments.ope.campaign_example import OVERLAP_HIGH, OVERLAP_LOW
from experiments.report.canvas import BLUE, VERMILION
from experiments.report.page import Column, Plot, Section, Table, Words
from experiments.report.plots import DotPanel, Mark, dot_panels
from experiments.report.propensity_plot import MOST_COLUMNS, OverlapPanel, overlap_panels
from experiments.report.standing import Results
from experiments.report.wording import (
    ABSENT,
    Currency,
    Row,
    listed,
    number_in,
    part_of,
    percent,
    plain,
    rows_in,
    text_in,
)

_ESTIMATORS = ("naive", "weighted", "doubly robust")
_WINDOWS = {"campaign": "in the campaign", "placebo": "before it (placebo)"}


def targeting_section(results: Results) -> Section | None:
    """The worked example on past campaigns; None where the logs have too few."""
    example = part_of(results, "targeting_example")
    types = rows_in(example, "types")
    if not types:
        return None
    money = Currency.of_results(results)
    weeks = plain(number_in(example, "window_weeks"))
    lead = (
        "A worked example of offline evaluation on logs without propensities: past campaigns of these "
        "logs, each user and campaign a decision, sent or not. Nobody recorded why a user was chosen, so "
        "propensities are estimated from shopping before the campaign, on users whom the model has not seen. "
        "It is an example of method and limits, and no proof that campaigns work or do not."
    )
    return Section(
        "targeting",
        "Past campaigns: what targeting hides",
        lead,
        [
            [_overlap_plot(types)],
            [_difference_plot(types, weeks, money)],
            [Words(what_can_be_said(types, money))],
            [_overlap_table(types)],
            [_difference_table(types, weeks, money)],
        ],
    )


def targeting_finding(types: Sequence[Row]) -> str:
    """Say how well a model tells who was sent a campaign."""
    parts = [f"{plain(number_in(row, 'auc'), 2)} ({text_in(row, 'campaign_type')})" for row in types]
    aucs = [number_in(row, "auc") or 0.5 for row in types]
    if min(aucs) >= 0.6:
        return (
            f"Targeting was not random: shopping before a campaign tells who is sent it, AUC {listed(parts)}"
        )
    return f"How well shopping before a campaign tells who is sent it: AUC {listed(parts)}"


def placebo_finding(types: Sequence[Row], weeks: str, money: Currency) -> str:
    """Set the naive difference beside the same difference before the campaign, for the largest type."""
    row = max(types, key=lambda row: (number_in(row, "n_rows") or 0) * (number_in(row, "sent_share") or 0))
    during, before = (_difference(row, window, "naive") for window in ("campaign", "placebo"))
    name = text_in(row, "campaign_type")
    values = [number_in(part, "value") for part in (during, before)]
    told = (
        f"Users sent a campaign of {name} spend {_more(values[0], money)} than others in its {weeks} weeks, "
        f"and {_more(values[1], money)} in the {weeks} weeks before it"
    )
    most = None not in values and (values[0] or 0) > 0 and (values[1] or 0) >= 0.5 * (values[0] or 0)
    return f"{told}: most of the difference was there before" if most and _excludes_zero(before) else told


def what_can_be_said(types: Sequence[Row], money: Currency) -> str:
    """Say in words what the numbers allow, and what they do not."""
    said = []
    adjusted = [
        f"{_amount(_difference(row, 'campaign', 'doubly robust'), money)} for {text_in(row, 'campaign_type')}"
        for row in types
    ]
    said.append(f"Once users are made alike as far as the features go, the difference is {listed(adjusted)}.")
    biased = [row for row in types if _excludes_zero(_difference(row, "placebo", "doubly robust"))]
    clear = [row for row in types if row not in biased]
    if biased:
        parts = [
            f"{_amount(_difference(row, 'placebo', 'doubly robust'), money)} for "
            f"{text_in(row, 'campaign_type')}"
            for row in biased
        ]
        said.append(
            "The same estimate of the weeks before the campaign, which it cannot have changed, is "
            f"{listed(parts)}: the features do not undo the targeting, and the difference in the campaign "
            "may be biased alike."
        )
    if clear:
        names = listed([text_in(row, "campaign_type") for row in clear])
        said.append(
            f"For {names} the placebo cannot be told from 0; that is no proof that nothing is hidden, for a "
            "reason for sending that came up with the campaign would not show in it."
        )
    refused: dict[str, list[str]] = {}
    for row in types:
        for support in rows_in(row, "supports"):
            if text_in(support, "verdict") == "do not use":
                refused.setdefault(text_in(support, "target"), []).append(text_in(row, "campaign_type"))
    if refused:
        parts = [f"{target} ({listed(names)})" for target, names in refused.items()]
        said.append(f"From weights alone the check-up of the log allows no number for: {', '.join(parts)}.")
    said.append(
        "So the effect of a campaign is not identified in these logs. None is claimed, and none enters the "
        "market, whose lift of coupons and messages on visits is assumed instead. A later campaign with "
        "logged propensities, as the exported policy writes them, would identify it."
    )
    return " ".join(said)


def _overlap_plot(types: Sequence[Row]) -> Plot:
    panels = []
    for row in types:
        bins = rows_in(row, "bins")
        edges = [number_in(one, "low") or 0.0 for one in bins] + [1.0]
        sent, not_sent = (
            [number_in(one, key) or 0.0 for one in bins] for key in ("sent_share", "not_sent_share")
        )
        title = f"{text_in(row, 'campaign_type')}: {percent(number_in(row, 'outside_share'), 0)} outside"
        panels.append(OverlapPanel(title, edges, sent, not_sent, (OVERLAP_LOW, OVERLAP_HIGH)))
    finding = targeting_finding(types)
    note = (
        f"Bars that face each other are users whom one may compare. Outside the dashed lines, at "
        f"{OVERLAP_LOW:g} and {OVERLAP_HIGH:g}, users are hardly ever sent the campaign, or nearly always: "
        "nothing stands against them."
    )
    return Plot(finding, overlap_panels("targeting-overlap", finding, panels), note)


def _difference_plot(types: Sequence[Row], weeks: str, money: Currency) -> Plot:
    panels = []
    for row in types:
        marks = []
        for estimator in _ESTIMATORS:
            for window, colour, shape in (("campaign", BLUE, "o"), ("placebo", VERMILION, "s")):
                part = _difference(row, window, estimator)
                value, low, high = (number_in(part, key) for key in ("value", "ci_low", "ci_high"))
                label = f"{estimator}, {window}"
                shown = money.amount(value, 0, sign=True)
                marks.append(Mark(label, value, low, high, shown, colour, shape, window == "campaign"))
        axis = f"sent less not sent, spend per user in {weeks} weeks ({money.unit})"
        panels.append(DotPanel(text_in(row, "campaign_type"), axis, marks, reference=0.0, tick=money.amount))
    finding = placebo_finding(types, weeks, money)
    note = (
        "Circles: the campaign's first weeks. Hollow squares: as many weeks before it, which it cannot have "
        "changed; away from 0 they show bias. Lines: 95% intervals, clustered by user. Naive: within each "
        "campaign. Weighted: by estimated propensities. Doubly robust: with a model of spend as well. Other "
        "campaigns ran in both windows."
    )
    return Plot(
        finding,
        dot_panels("targeting-differences", finding, panels, columns=min(len(panels), MOST_COLUMNS)),
        note,
    )


def _overlap_table(types: Sequence[Row]) -> Table:
    rows = []
    for row in types:
        supports = rows_in(row, "supports")
        rows.append(
            [
                text_in(row, "campaign_type"),
                plain(float(len(row.get("campaigns") or ()))),
                plain(number_in(row, "n_rows")),
                percent(number_in(row, "sent_share")),
                text_in(row, "model"),
                plain(number_in(row, "auc"), 3),
                plain(number_in(row, "log_loss"), 3),
                plain(number_in(row, "marginal_log_loss"), 3),
                percent(number_in(row, "outside_share")),
                "; ".join(
                    f"{text_in(s, 'target')}: {plain(number_in(s, 'ess'), 0)}, largest weight "
                    f"{plain(number_in(s, 'largest_weight'), 0)}, {text_in(s, 'verdict')}"
                    for s in supports
                ),
            ]
        )
    columns = [
        Column("type", words=True),
        *(Column(title) for title in ("campaigns", "pairs", "sent")),
        Column("model", words=True),
        *(Column(title) for title in ("AUC", "log loss", "by share alone", "outside")),
        Column("effective sample, largest weight, verdict", words=True),
    ]
    caption = (
        "Estimated propensities on users not seen. Pairs: of user and campaign. Outside: propensity below "
        f"{OVERLAP_LOW:g} or above {OVERLAP_HIGH:g}. Log loss in nats per pair."
    )
    return Table("targeting-overlap", caption, columns, rows)


def _difference_table(types: Sequence[Row], weeks: str, money: Currency) -> Table:
    rows = [
        [
            text_in(row, "campaign_type"),
            text_in(part, "estimator"),
            _WINDOWS.get(text_in(part, "window"), text_in(part, "window")),
            money.amount(number_in(part, "value"), 1, sign=True),
            money.interval(number_in(part, "ci_low"), number_in(part, "ci_high"), 1),
        ]
        for row in types
        for part in rows_in(row, "differences")
    ]
    columns = [
        *(Column(title, words=True) for title in ("type", "estimator", "window")),
        *(Column(title) for title in ("difference", "95% interval")),
    ]
    caption = f"Spend of users sent a campaign less that of others, {money.unit} per user in {weeks} weeks."
    return Table("targeting-differences", caption, columns, rows, folded=True)


def _difference(row: Row, window: str, estimator: str) -> Row:
    found = [
        part
        for part in rows_in(row, "differences")
        if part.get("window") == window and part.get("estimator") == estimator
    ]
    empty: Mapping[str, object] = {}
    return found[0] if found else empty


def _excludes_zero(part: Row) -> bool:
    low, high = number_in(part, "ci_low"), number_in(part, "ci_high")
    return low is not None and high is not None and (low > 0 or high < 0)


def _more(value: float | None, money: Currency) -> str:
    if value is None:
        return ABSENT
    return f"{money.amount(abs(value), 0)} {'less' if value < 0 else 'more'}"


def _amount(part: Row, money: Currency) -> str:
    interval = money.interval(number_in(part, "ci_low"), number_in(part, "ci_high"), 1)
    return f"{money.amount(number_in(part, 'value'), 1, sign=True)} ({interval})"
