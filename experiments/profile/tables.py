"""A user's profile as tables for a terminal; everything in them is in its JSON."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from experiments.profile.build import EXAMPLE_DEPTH, Standing, UserProfile
from experiments.profile.channels import Channels
from experiments.profile.drift import Drift, Neighbours
from experiments.profile.habits import Favourite

HARDLY_DIFFERENT = 0.1
"""Spread of the middle 90% of users, over their median, below which a rank among them says little."""

_REDEMPTION = (
    "redemption: probability of using a held coupon at a purchase it covers, from shopping history and text; "
    "the model does not see the campaigns below"
)


def show_profile(console: Console, profile: UserProfile) -> None:
    """Print a profile.

    Args:
        console: where to.
        profile: whose.
    """
    segment = profile.segment
    since = "never visited" if segment.weeks_since_visit is None else _weeks_ago(segment.weeks_since_visit)
    for line in (
        f"User {profile.user} at the start of week {profile.week}: {segment.name}",
        f"last visit {since}; {segment.visit_rate:.0%} of weeks with a visit (more than "
        f"{segment.visit_percentile:.0%} of users), {segment.spend:,.2f} spent a week (more than "
        f"{segment.spend_percentile:.0%})",
    ):
        _say(console, line)
    console.print(_favourites(profile.favourites))
    console.print(_model_figures(profile))
    if profile.price.high - profile.price.low < HARDLY_DIFFERENT * profile.price.median:
        _say(console, "In price sensitivity the model tells users hardly apart: read little into the rank.")
    console.print(_channels(profile.channels))
    if profile.channels.best:
        _say(
            console,
            f"Best channel: {profile.channels.best}; if messages and coupons brought no visits: "
            f"{profile.channels.best_without_lifts}.",
        )
        for effect in profile.channels.effects:
            _say(console, f"  {effect.channel}: {effect.basis}")
    _say(console, _campaign_line(profile))
    console.print(_drift(profile.drift))
    console.print(_changes(profile.drift, profile.week))
    console.print(_neighbours(profile.neighbours))
    read = "" if profile.text_tokens <= profile.most_tokens else f", of which it reads {profile.most_tokens}"
    length = f"{profile.text_tokens} tokens{read}"
    _say(console, f"Text that BERT reads, written at week {profile.embedded_week} ({length}):")
    _say(console, profile.text)


def _say(console: Console, line: str) -> None:
    console.print(line, markup=False, highlight=False, soft_wrap=True)


def _table(title: str, columns: Sequence[str], text: Sequence[str]) -> Table:
    """An empty table; the columns named in ``text`` are words, the others numbers."""
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column, justify="left" if column in text else "right")
    return table


def _weeks_ago(weeks: int) -> str:
    return "last week" if weeks == 1 else f"{weeks} weeks ago"


def _names(names: Sequence[str]) -> str:
    return escape(", ".join(names)) if names else "–"


def _optional(value: float | None, pattern: str) -> str:
    return "–" if value is None else format(value, pattern)


def _favourites(rows: Sequence[Favourite]) -> Table:
    title = "Favourite categories: bought per visit, recent visits counting more, beside all users"
    table = _table(
        title, ("category", "rate", "all users", "lift", "last bought"), ("category", "last bought")
    )
    for row in rows:
        since = "never" if row.weeks_since is None else _weeks_ago(row.weeks_since)
        lift = _optional(row.lift, ".1f")
        table.add_row(escape(row.category), f"{row.rate:.0%}", f"{row.population_rate:.0%}", lift, since)
    return table


def _model_figures(profile: UserProfile) -> Table:
    title = "What the model says of the user, beside all users"
    columns = ("figure", "value", "users below", "5% of users", "median", "95% of users", "source")
    table = _table(title, columns, ("figure", "source"))

    def row(name: str, standing: Standing) -> None:
        numbers = [format(v, ".3g") for v in (standing.low, standing.median, standing.high)]
        share = f"{standing.percentile:.0%}"
        table.add_row(name, format(standing.value, ".3g"), share, *numbers, escape(standing.source))

    row(
        f"price sensitivity: mean depth effect θ; {EXAMPLE_DEPTH:.0%} further discount multiplies the odds "
        f"of a purchase by {profile.price_odds:.2f}",
        profile.price,
    )
    row(_REDEMPTION, profile.redemption)
    return table


def _channels(channels: Channels) -> Table:
    title = (
        f"Channels: what each adds to the week's expected margin of {channels.margin:.2f} "
        f"(visit probability {channels.visit_probability:.0%}), before its cost"
    )
    columns = ("channel", "with", "added margin", "over assumed range", "without assumed lifts", "cost")
    table = _table(title, columns, ("channel", "with"))
    for effect in channels.effects:
        table.add_row(
            effect.channel,
            escape(effect.what),
            f"{effect.margin:.3f}",
            f"{effect.margin_low:.3f} … {effect.margin_high:.3f}",
            f"{effect.without_lifts:.3f}",
            "unknown" if effect.cost is None else f"{effect.cost:.3f}",
        )
    return table


def _campaign_line(profile: UserProfile) -> str:
    if not profile.campaigns:
        return "Campaigns so far: none were sent to this user."
    redeemed = [one for one in profile.campaigns if one.redeemed]
    which = f" ({', '.join(f'{one.campaign} in week {one.week}' for one in redeemed)})" if redeemed else ""
    beside = _optional(profile.redeemed_share, ".0%")
    return (
        f"Campaigns so far: {len(profile.campaigns)} received, {len(redeemed)} redeemed{which}; "
        f"among all users {beside} of campaigns received were."
    )


def _drift(drift: Drift) -> Table:
    title = "Change over time: each row tells of the weeks since the one above"
    columns = (
        *("up to week", "cosine to before", "all users' median", "visit rate", "categories a visit"),
        *("spend a visit", "most bought"),
    )
    table = _table(title, columns, ("most bought",))
    for step in drift.steps:
        table.add_row(
            str(step.week),
            _optional(step.cosine, ".2f"),
            _optional(step.population_cosine, ".2f"),
            f"{step.visit_rate:.0%}",
            _optional(step.basket_size, ".1f"),
            _optional(step.basket_spend, ",.2f"),
            _names(step.top_categories),
        )
    return table


def _changes(drift: Drift, week: int) -> Table:
    title = f"Rising and falling, per visit: weeks 1-{drift.half} against {drift.half + 1}-{week - 1}"
    columns = ("", "category", "before", "after", "change of all users")
    table = _table(title, columns, ("", "category"))
    for name, rows in (("rising", drift.rising), ("falling", drift.falling)):
        for row in rows:
            table.add_row(
                name,
                escape(row.category),
                f"{row.before:.0%}",
                f"{row.after:.0%}",
                f"{row.population_change:+.1%}",
            )
    return table


def _neighbours(neighbours: Neighbours) -> Table:
    title = f"Nearest users by embedding (median of all: cosine {neighbours.population_cosine:.2f})"
    columns = ("user", "cosine", "segment", "both buy more than others")
    table = _table(title, columns, ("user", "segment", "both buy more than others"))
    for row in neighbours.nearest:
        table.add_row(row.user, f"{row.cosine:.2f}", row.segment, _names(row.in_common))
    return table
