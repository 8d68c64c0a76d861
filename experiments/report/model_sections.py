"""What in the model is fitted and what assumed, how it was trained, and from what data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from experiments.report.canvas import BLUE, GREY, ORANGE, VERMILION
from experiments.report.page import Block, Column, Plot, Section, Table, Words
from experiments.report.plots import (
    Line,
    LinePanel,
    compact,
    line_panels,
    share_tick,
    time_bars,
)
from experiments.report.wording import (
    ABSENT,
    Currency,
    Row,
    duration,
    number_in,
    part_of,
    percent,
    plain,
    rows_in,
    several,
    short,
    text_in,
)

Results = Mapping[str, Any]


# What it is made of -------------------------------------------------------------------------------


def response_section(results: Results) -> Section | None:
    """Fitted parameters, and assumed ones with their ranges."""
    response = part_of(results, "response")
    fitted, assumed = rows_in(response, "fitted"), rows_in(response, "assumed")
    if not fitted and not assumed:
        return None
    blocks: list[Block] = []
    if fitted:
        rows = [
            [text_in(row, "name"), _value(row.get("value")), text_in(row, "meaning"), text_in(row, "source")]
            for row in fitted
        ]
        columns = [
            Column("parameter", words=True),
            Column("value"),
            Column("meaning", words=True),
            Column("source", words=True),
        ]
        blocks.append([Table("fitted", "Fitted: estimated from these logs", columns, rows)])
    if assumed:
        rows = [
            [
                text_in(row, "name"),
                *(short(number_in(row, key)) for key in ("low", "central", "high")),
                text_in(row, "meaning"),
                text_in(row, "source"),
            ]
            for row in assumed
        ]
        columns = [
            Column("parameter", words=True),
            *(Column(title) for title in ("low", "central", "high")),
            Column("meaning", words=True),
            Column("source", words=True),
        ]
        caption = "Assumed: these logs cannot tell, so simulators draw a value from the range"
        blocks.append([Table("assumed", caption, columns, rows)])
    lead = (
        f"{several(len(fitted), 'parameter')} fitted from the logs, {plain(len(assumed))} assumed. A "
        "policy's margin is only as good as the assumed ranges."
    )
    return Section("response", "What is fitted and what is assumed", lead, blocks)


def _value(value: Any) -> str:
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(_value(item) for item in value)
    return ABSENT if value is None else value if isinstance(value, str) else short(number_in({"": value}, ""))


# How it was trained -------------------------------------------------------------------------------


def training_section(results: Results) -> Section | None:
    """Training of the policy."""
    training = part_of(results, "training")
    rollouts = rows_in(training, "rollouts")
    if not rollouts:
        return None
    money = Currency.of_results(results)
    steps = [number_in(row, "steps") for row in rollouts]
    series = {
        "incremental_margin": ("Incremental margin", f"per user and campaign ({money.unit})", BLUE),
        "cost": ("Cost", f"per user and campaign ({money.unit})", ORANGE),
        "reward": ("Training reward", "margin − λ cost, scaled", BLUE),
        "entropy": ("Entropy of the policy", "nats", GREY),
    }
    panels = [
        LinePanel(
            title,
            "user-weeks of experience",
            axis,
            [Line("", steps, [number_in(row, key) for row in rollouts], colour)],
            x_tick=compact,
        )
        for key, (title, axis, colour) in series.items()
    ]
    finding = _training_finding(rollouts, money)
    note = "λ varies in training, so these are averages over many budgets, not one."
    columns = [Column("", words=True), Column("first rollout"), Column("middle"), Column("last")]
    chosen = [rollouts[0], rollouts[len(rollouts) // 2], rollouts[-1]]
    rows = [["user-weeks", *(plain(number_in(row, "steps")) for row in chosen)]]
    rows += [
        [title.lower(), *(short(number_in(row, key)) for row in chosen)]
        for key, (title, *_) in series.items()
    ]
    table = Table("training", f"Three of {several(len(rollouts), 'rollout')}", columns, rows)
    prices = training.get("price_range")
    lead = "One policy is trained for all budgets: the price λ of budget is part of what it observes."
    if isinstance(prices, Sequence) and len(prices) == 2:
        low, high = (short(number_in({"": price}, "")) for price in prices)
        lead += f" In training λ lay between {low} and {high}."
    plot = Plot(finding, line_panels("training", finding, panels, columns=2, height=2.2), note)
    return Section("training", "Training the policy (PPO)", lead, [[plot, table]])


def _training_finding(rollouts: Sequence[Row], money: Currency) -> str:
    values = [v for row in rollouts if (v := number_in(row, "incremental_margin")) is not None]
    steps = number_in(rollouts[-1], "steps")
    if not values or steps is None:
        return "Training, rollout by rollout"
    tenth = max(1, len(values) // 10)
    first, last = sum(values[:tenth]) / tenth, sum(values[-tenth:]) / tenth
    direction = "rises" if last > first else "falls"
    return (
        f"Margin per user {direction} from {money.headline(first)} to {money.headline(last)} over "
        f"{compact(float(f'{steps:.3g}'))} user-weeks"
    )


def encoder_section(results: Results) -> Section | None:
    """Pretraining and fine-tuning of the encoder."""
    pretraining = part_of(results, "pretraining")
    before = rows_in(pretraining, "epochs")
    after = rows_in(part_of(results, "fine_tuning"), "epochs")
    if not pretraining and not after:
        return None
    blocks: list[Block] = []
    if before:
        blocks.append(_pretraining_block(before))
    habits = rows_in(pretraining, "habits")
    if habits:
        blocks.append(_habit_block(habits))
    if after:
        blocks.append(_fine_tuning_block(after))
    lead = "A BERT reads each user's history as text. "
    if pretraining:
        lead += (
            f"Pretraining: {plain(number_in(pretraining, 'texts'))} texts, a vocabulary of "
            f"{plain(number_in(pretraining, 'vocabulary'))} word pieces, "
            f"{plain(number_in(pretraining, 'parameters'))} parameters. "
        )
    else:
        lead += "Pretraining has not run. "
    lead += "" if after else "Fine-tuning has not run."
    return Section("encoder", "Training the encoder", lead, blocks)


def _epochs(rows: Sequence[Row]) -> list[float | None]:
    return [number_in(row, "epoch") for row in rows]


def _pretraining_block(rows: Sequence[Row]) -> Block:
    def line(label: str, key: str, colour: str, shape: str) -> Line:
        return Line(label, _epochs(rows), [number_in(row, key) for row in rows], colour, shape)

    panels = [
        LinePanel(
            "Masked words", "epoch", "loss, nats", [line("", "masked_loss", BLUE, "o")], plain, plain, True
        ),
        LinePanel(
            "Next basket recognised",
            "epoch",
            "accuracy",
            [line("", "next_basket_accuracy", BLUE, "o")],
            plain,
            share_tick,
            True,
        ),
    ]
    first, last = rows[0], rows[-1]
    course = f"{short(number_in(first, 'masked_loss'))} → " if len(rows) > 1 else ""
    finding = (
        f"Pretraining: masked-word loss {course}{short(number_in(last, 'masked_loss'))}; "
        f"the next basket is recognised {percent(number_in(last, 'next_basket_accuracy'))} of the time"
    )
    columns = [Column(t) for t in ("epoch", "masked-word loss", "next-basket loss", "next-basket accuracy")]
    cells = [
        [
            plain(number_in(row, "epoch")),
            plain(number_in(row, "masked_loss"), 4),
            plain(number_in(row, "next_basket_loss"), 4),
            percent(number_in(row, "next_basket_accuracy"), 2),
        ]
        for row in rows
    ]
    if len(rows) == 1:
        # A single point is no course to plot.
        return [Table("pretraining", f"{finding}, half of which is guessing", columns, cells)]
    plot = Plot(finding, line_panels("pretraining", finding, panels, columns=2))
    return [plot, Table("pretraining", "Pretraining", columns, cells)]


def _habit_block(rows: Sequence[Row]) -> Block:
    """What the embedding keeps of habits, epoch by epoch."""
    kept = [number_in(row, "explained") for row in rows]
    matched = [number_in(row, "matched") for row in rows]
    lines = [
        Line("read off the embedding", _epochs(rows), kept, BLUE, "o"),
        Line("match with the category's text", _epochs(rows), matched, VERMILION, "s"),
    ]
    finding = (
        f"The embedding keeps {percent(kept[-1])} of how users differ in their purchase rates; "
        f"its match with a category's text {percent(matched[-1])}"
    )
    panel = LinePanel("", "epoch", "share of variance, tuning weeks", lines, plain, share_tick, True)
    titles = ("epoch", "loss", "variance explained", "variance explained by the match")
    cells = [
        [
            plain(number_in(row, "epoch")),
            plain(number_in(row, "loss"), 4),
            percent(number_in(row, "explained"), 1),
            percent(number_in(row, "matched"), 1),
        ]
        for row in rows
    ]
    columns = [Column(title) for title in titles]
    if len(rows) == 1:
        return [Table("habits", finding, columns, cells)]
    plot = Plot(finding, line_panels("habits", finding, [panel], height=2.8))
    return [plot, Table("habits", "Habits", columns, cells)]


def _fine_tuning_block(rows: Sequence[Row]) -> Block:
    """The first encoder's losses as a plot, every encoder's in the table; epoch 0 is the pretrained start."""
    first = [row for row in rows if number_in(row, "member") == number_in(rows[0], "member")]
    loss, tune = ([number_in(row, key) for row in first] for key in ("loss", "tune_loss"))
    lines = [
        Line("training weeks", _epochs(first), loss, BLUE, "o"),
        Line("tuning weeks", _epochs(first), tune, VERMILION, "s"),
    ]
    known = [(value, place) for place, value in enumerate(tune) if value is not None]
    best = min(known)[1] if known else None
    finding = "Fine-tuning, epoch by epoch"
    if best is not None:
        epoch = number_in(first[best], "epoch")
        finding = f"Fine-tuning is best after epoch {plain(epoch)}: tuning loss {short(tune[best])}"
        if epoch == 0:
            finding = f"Fine-tuning did not improve on pretraining: tuning loss {short(tune[best])}"
        elif best < len(first) - 1:
            finding += "; later epochs are worse"
        else:
            finding += ", at the last epoch"
    panel = LinePanel("", "epoch", "multi-task loss", lines, plain, plain, True)
    columns = [Column(t) for t in ("encoder", "epoch", "loss, training weeks", "loss, tuning weeks")]
    cells = [
        [
            plain(number_in(row, "member")),
            plain(number_in(row, "epoch")),
            plain(number_in(row, "loss"), 4),
            plain(number_in(row, "tune_loss"), 4),
        ]
        for row in rows
    ]
    strong = frozenset() if best is None else frozenset({best})
    plot = Plot(finding, line_panels("fine-tuning", finding, [panel], height=2.8))
    return [plot, Table("fine_tuning", "Fine-tuning", columns, cells, strong=strong)]


# From what, into what, in what time ---------------------------------------------------------------


def data_section(results: Results) -> Section | None:
    """The logs, and how they are split by time."""
    data = part_of(results, "data")
    if not data:
        return None
    split = part_of(data, "split")
    train, tune, report = (number_in(split, key) for key in ("train_end", "tune_end", "report_end"))
    rows = [
        ["origin", text_in(data, "origin")],
        ["users", plain(number_in(data, "n_users"))],
        ["weeks", plain(number_in(data, "n_weeks"))],
        ["categories", plain(number_in(data, "n_categories"))],
        ["total spend", Currency.of_results(results).amount(number_in(data, "spend"))],
        ["user-weeks with a visit", percent(number_in(data, "visit_rate"), 2)],
        ["user-week-categories with a purchase", percent(number_in(data, "purchase_rate"), 2)],
        ["rows on coupon redemption", plain(number_in(data, "redemption_rows"))],
        ["of which redeemed", percent(number_in(data, "redemption_rate"), 2)],
    ]
    if train is not None and tune is not None and report is not None:
        rows += [
            ["weeks to train on", f"1–{plain(train)}"],
            ["weeks to tune on", f"{plain(train + 1)}–{plain(tune)}"],
            ["weeks to report on", f"{plain(tune + 1)}–{plain(report)}"],
        ]
    lead = "Weeks after those reported on are locked: nothing was trained, tuned or measured on them."
    columns = [Column("measure", words=True), Column("value", words=True)]
    table = Table("data", "The logs", columns, rows)
    notes = data.get("notes")
    items = [note for note in notes if isinstance(note, str)] if isinstance(notes, Sequence) else []
    block: list[Table | Plot | Words] = [table]
    if items:
        block.append(
            Table("notes", "Noted while reading", [Column("note", words=True)], [[n] for n in items])
        )
    return Section("data", "The data", lead, [block])


def export_section(results: Results) -> Section | None:
    """The exported policy."""
    export = part_of(results, "export")
    if not export:
        return None
    gap = number_in(export, "parity_max_abs_diff")
    lead = (
        f"The exported policy's offer probabilities differ from the trained one's by at most {short(gap)}."
        if gap is not None
        else "The exported policy was not compared with the trained one."
    )
    size = number_in(export, "bytes")
    rows = [
        ["path", text_in(export, "path")],
        ["largest difference in probability", short(gap)],
        ["size", f"{plain(size)} bytes" if size is not None else ABSENT],
    ]
    columns = [Column("measure", words=True), Column("value", words=True)]
    return Section(
        "export",
        "The exported policy",
        lead,
        [[Table("export", "The bundle", columns, rows)]],
    )


def timing_section(results: Results) -> Section | None:
    """Working time of each stage."""
    timing = part_of(results, "timing")
    seconds = {str(stage): value for stage in timing if (value := number_in(timing, stage)) is not None}
    if not seconds:
        return None
    total = sum(seconds.values())
    longest = max(seconds, key=lambda stage: seconds[stage])
    finding = f"{duration(total)} in all"
    if total > 0:
        finding += f"; {longest} takes {percent(seconds[longest] / total, 0)}"
    rows = [
        [stage, plain(value, 1), percent(value / total if total else None)]
        for stage, value in seconds.items()
    ]
    rows.append(["total", plain(total, 1), percent(1.0)])
    columns = [Column("stage", words=True), Column("seconds"), Column("share")]
    table = Table("timing", "Working time by stage", columns, rows, strong=frozenset({len(rows) - 1}))
    return Section("timing", "Time", "", [[Plot(finding, time_bars("timing", finding, seconds)), table]])
