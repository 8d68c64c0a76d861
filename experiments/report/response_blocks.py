"""Whether the model answers to promotion as the logs do, and foresees who redeems a campaign's coupons."""

from __future__ import annotations

from collections.abc import Sequence

from experiments.report.canvas import BLUE, GREY
from experiments.report.page import Block, Column, Plot, Table, Words
from experiments.report.plots import DotPanel, Mark, dot_panels
from experiments.report.wording import (
    ABSENT,
    Row,
    listed,
    number_in,
    part_of,
    percent,
    plain,
    rows_in,
    several,
    text_in,
)

_UNITS = {
    "depth": "log points of purchases for a discount of 100%",
    "display": "log points of purchases, none to all of the category on display",
    "mailer": "log points of purchases, none to all of the category in the mailer",
}
_REDEMPTION_MODELS = {
    "model": "this model",
    "no_coupon_history": "without coupon history",
    "frequency": "shopping and covered purchases alone",
}

# Promotion ----------------------------------------------------------------------------------------


def promotion_blocks(responses: Sequence[Row]) -> list[Block]:
    """The model's semi-elasticities beside the intervals of the regressions on the logs."""
    known = [row for row in responses if number_in(row, "estimate") is not None]
    if not known:
        return []
    finding = _promotion_finding(known)
    panels = [_promotion_panel(row) for row in known]
    note = (
        "Semi-elasticities of purchases given a visit, training weeks. The logs' figure is a Poisson "
        "regression with category and week effects, standard errors clustered by category; the model's is "
        "its replay of the same weeks with a little more promotion. One common slope and a mean over "
        "categories are not quite the same quantity: hence the same regression on the model's replay (open "
        "circle), and a regression with slopes of each category's own."
    )
    columns = [
        Column("promotion", words=True),
        *(Column(t) for t in ("logs", "95% interval", "model")),
        Column("inside", words=True),
        *(Column(t) for t in ("same regression on the model", "own slopes", "95% interval", "model")),
        Column("inside", words=True),
    ]
    rows = [
        [
            text_in(row, "name"),
            *_estimate_cells(row),
            plain(number_in(row, "model_fixed_effects"), 3),
            *_estimate_cells(part_of(row, "own_slopes")),
        ]
        for row in known
    ]
    table = Table("promotion", "Response to promotion, log points per unit", columns, rows, folded=True)
    return [[Plot(finding, dot_panels("promotion", finding, panels, columns=3), note)], [table]]


def _promotion_finding(known: Sequence[Row]) -> str:
    inside = [text_in(row, "name") for row in known if row.get("inside") is True]
    outside = [
        f"{text_in(row, 'name')} ({plain(number_in(row, 'model'), 2)} against "
        f"{_range(number_in(row, 'ci_low'), number_in(row, 'ci_high'), 2)})"
        for row in known
        if row.get("inside") is False
    ]
    parts = []
    if inside:
        parts.append(f"inside the logs' interval for {listed(inside)}")
    if outside:
        parts.append(f"outside it for {listed(outside)}" if inside else f"outside it: {listed(outside)}")
    if not parts:
        return "The model's response to promotion beside the logs'"
    return f"The model's response to promotion lies {'; '.join(parts)}".replace(
        "lies outside it:", "lies outside the logs' interval:"
    )


def _promotion_panel(row: Row) -> DotPanel:
    own = part_of(row, "own_slopes")

    def mark(label: str, part: Row, key: str, *, logs: bool = False, filled: bool = True) -> Mark:
        value = number_in(part, key)
        low, high = (number_in(part, end) if logs else None for end in ("ci_low", "ci_high"))
        colour, shape = (GREY, "s") if logs else (BLUE, "o")
        return Mark(label, value, low, high, plain(value, 2), colour, shape, filled)

    marks = [
        mark("logs: one common slope", row, "estimate", logs=True),
        mark("model, replayed", row, "model"),
        mark("model, same regression", row, "model_fixed_effects", filled=False),
    ]
    if number_in(own, "estimate") is not None:
        marks += [
            mark("logs: slopes by category", own, "estimate", logs=True),
            mark("model, same categories", own, "model"),
        ]
    name = text_in(row, "name")
    return DotPanel(name, _UNITS.get(name, "log points of purchases per unit"), marks)


def _estimate_cells(part: Row) -> list[str]:
    inside = part.get("inside")
    return [
        plain(number_in(part, "estimate"), 3),
        _range(number_in(part, "ci_low"), number_in(part, "ci_high"), 3),
        plain(number_in(part, "model"), 3),
        ("yes" if inside else "no") if isinstance(inside, bool) else ABSENT,
    ]


def _range(low: float | None, high: float | None, digits: int) -> str:
    return ABSENT if low is None or high is None else f"{plain(low, digits)} to {plain(high, digits)}"


# Redemption ---------------------------------------------------------------------------------------


def redemption_blocks(redemption: Row, compared: Sequence[Row]) -> list[Block]:
    """Who of the targeted redeems: AUC by campaign and by model, and the coefficients in words."""
    model = part_of(redemption, "model")
    if number_in(model, "auc") is None:
        reason = text_in(redemption, "note")
        return [] if reason == ABSENT else [[Words(f"Redemption by targeted users is not judged: {reason}.")]]
    bar = next(
        (number_in(row, "bar") for row in compared if text_in(row, "measure").startswith("redemption")), None
    )
    finding = _redemption_finding(redemption, model, bar)
    low, high = number_in(model, "auc_low"), number_in(model, "auc_high")
    marks = [Mark("all campaigns", number_in(model, "auc"), low, high, plain(number_in(model, "auc"), 3))]
    by_campaign = rows_in(redemption, "by_campaign")
    marks += [
        Mark(
            f"campaign {text_in(row, 'campaign')}",
            number_in(row, "auc"),
            words=f"{plain(number_in(row, 'redeemed'))} of {plain(number_in(row, 'rows'))}",
            colour=GREY,
            marker="s",
        )
        for row in by_campaign
    ]
    axis = "AUC of redemption (0.5: chance, 1: perfect); at the right, households that redeemed"
    label = "" if bar is None else f"bar {plain(bar, 2)}"
    panel = DotPanel("", axis, marks, reference=bar, reference_label=label)
    train, test = part_of(redemption, "train"), part_of(redemption, "test")
    note = (
        f"Fitted on {_extent(train)} that started before week "
        f"{plain(number_in(redemption, 'test_week'))}; judged on "
        f"{_extent(test)} from then on. Given that a household was targeted: it says nothing of what "
        "campaigns cause, and the market does not use this model: there a coupon is redeemed at a covered "
        "purchase, by a head of its own. The interval resamples households. "
    )
    ridge = number_in(redemption, "embedding_ridge")
    note += (
        "Left-out training campaigns chose to do without the text embedding."
        if ridge is None
        else f"Left-out training campaigns chose to use the text embedding, at a penalty of {plain(ridge)}."
    )
    plot = Plot(finding, dot_panels("redemption", finding, [panel]), note)
    blocks: list[Block] = [
        [plot, *_coefficient_tables(rows_in(redemption, "coefficients"))],
        [_redemption_models(redemption)],
    ]
    return [*blocks, [_campaign_table(by_campaign)]] if by_campaign else blocks


def _redemption_finding(redemption: Row, model: Row, bar: float | None) -> str:
    auc, low, high = (number_in(model, key) for key in ("auc", "auc_low", "auc_high"))
    campaigns = number_in(part_of(redemption, "test"), "campaigns")
    text = f"Who of the targeted redeems: AUC {plain(auc, 3)}"
    if low is not None and high is not None:
        text += f" ({_range(low, high, 3)})"
    if campaigns is not None:
        text += f" on {several(int(campaigns), 'later campaign')}"
    if bar is None or auc is None:
        return text
    text += f"; the bar of {plain(bar, 2)} is {'met' if auc >= bar else 'missed'}"
    if low is not None and high is not None and low < bar < high:
        text += ", and lies within the interval"
    return text


def _extent(part: Row) -> str:
    campaigns = number_in(part, "campaigns")
    rows, rate = plain(number_in(part, "rows")), percent(number_in(part, "rate"))
    return f"{several(int(campaigns or 0), 'campaign')} ({rows} households targeted, {rate} redeemed)"


def _redemption_models(redemption: Row) -> Table:
    columns = [
        Column("model", words=True),
        *(Column(t) for t in ("AUC", "95% interval", "average precision", "log loss", "ECE")),
        Column("AUC, left-out training campaigns"),
    ]
    rows = []
    for key, name in _REDEMPTION_MODELS.items():
        if part := part_of(redemption, key):
            low, high = number_in(part, "auc_low"), number_in(part, "auc_high")
            measures = ("average_precision", "log_loss", "ece", "cv_auc")
            rows.append(
                [
                    name,
                    plain(number_in(part, "auc"), 3),
                    _range(low, high, 3),
                    *(plain(number_in(part, measure), 3) for measure in measures),
                ]
            )
    return Table("redemption", "Redemption by targeted households", columns, rows, strong=frozenset({0}))


def _campaign_table(by_campaign: Sequence[Row]) -> Table:
    columns = [
        Column("campaign", words=True),
        *(Column(title) for title in ("targeted", "redeemed", "expected", "AUC")),
        Column("window wholly seen", words=True),
    ]
    rows = [
        [
            text_in(row, "campaign"),
            plain(number_in(row, "rows")),
            plain(number_in(row, "redeemed")),
            plain(number_in(row, "expected"), 1),
            plain(number_in(row, "auc"), 3),
            {True: "yes", False: "no"}.get(row.get("fully_seen"), ABSENT),  # type: ignore[arg-type]
        ]
        for row in by_campaign
    ]
    caption = "Campaigns judged on, in households"
    return Table("redemption_campaigns", caption, columns, rows, folded=True)


def _coefficient_tables(coefficients: Sequence[Row]) -> list[Table]:
    """What goes with redeeming, each per standard deviation and with all others held."""
    rows = [
        [text_in(row, "meaning"), plain(number_in(row, "standard_deviation"), 2), _in_words(ratio)]
        for row in coefficients
        if (ratio := number_in(row, "odds_ratio")) is not None
    ]
    if not rows:
        return []
    columns = [
        Column("history before the campaign", words=True),
        Column("standard deviation"),
        Column("one standard deviation more", words=True),
    ]
    return [Table("redemption_coefficients", "What goes with redeeming, all else equal", columns, rows)]


def _in_words(odds_ratio: float) -> str:
    change = odds_ratio - 1
    if percent(abs(change), 0) == percent(0.0, 0):
        return "leaves the odds as they are"
    if odds_ratio >= 2:
        return f"multiplies the odds by {plain(odds_ratio, 1)}"
    return f"{'raises' if change > 0 else 'lowers'} the odds by {percent(abs(change), 0)}"
