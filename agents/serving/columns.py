"""What the exported graph takes and gives, by name; shared by export and runtime, hence free of torch."""

from __future__ import annotations

USER_COLUMNS = (
    "visits_slow",
    "visits_fast",
    "weeks_slow",
    "weeks_fast",
    "visit_recency",
    "basket_size",
    "basket_spend",
    "trips_slow",
    "trips_fast",
    "last_trips",
    "basket_1_week_ago",
    "basket_2_weeks_ago",
    "basket_3_weeks_ago",
    "basket_4_weeks_ago",
    "fatigue",
    "opted_in",
    "coupon_depth",
    "coupon_weeks_left",
)
"""Columns of the input ``user``: of the history, then what the shop knows of its own doings."""

HISTORY_COLUMNS = USER_COLUMNS[: USER_COLUMNS.index("basket_1_week_ago")]
"""Those that are fields of :class:`encoders.history.HistoryState` by the same name."""

CALENDAR_ROWS = ("depth", "display", "mailer", "category_trend")
"""Rows of the input ``calendar``."""

WEEK_COLUMNS = ("visit_trend", "month_start", "weeks_left")
"""Entries of the input ``week``."""

ROW_INPUTS = (
    "category_recency",
    "category_slow",
    "category_fast",
    "recent",
    "user",
    "messages",
    "deal_category",
    "deal_depth",
    "deal_weeks_ago",
    "embedding",
    "price",
)
"""Inputs with a row a user."""

WEEK_INPUTS = ("calendar", "week", "available")
"""Inputs that all users of a week share."""

OUTPUTS = ("probabilities", "slots", "observation")

INPUTS = (*ROW_INPUTS, *WEEK_INPUTS)
"""All inputs, in the order in which the graph takes them."""
