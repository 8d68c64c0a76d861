"""Which modelled category each item of a log belongs to; a served policy looks purchases up by it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from envs.logs import Logs


def item_categories(
    logs: Logs, categories: Sequence[str]
) -> tuple[npt.NDArray[np.str_], npt.NDArray[np.int64]]:
    """Return the ids of items in modelled categories as text, ascending, and the category index of each.

    Args:
        logs: validated logs.
        categories: [C] names.
    """
    with logs.connection.cursor() as cursor:
        rows = cursor.execute("SELECT CAST(item_id AS VARCHAR), category FROM items").fetchall()
    places = {name: k for k, name in enumerate(categories)}
    found = sorted((str(item), places[category]) for item, category in rows if category in places)
    ids = np.array([item for item, _ in found], dtype=np.str_)
    return ids, np.array([place for _, place in found], dtype=np.int64)
