from __future__ import annotations

import numpy as np

from envs.item_categories import item_categories
from envs.logs import open_logs
from envs.synthetic import SyntheticConfig


def test_each_item_of_a_modelled_category_is_found_in_order() -> None:
    config = SyntheticConfig(
        n_users=10, n_weeks=26, n_categories=5, items_per_category=3, n_stores=2, campaign_categories=2
    )
    with open_logs("synthetic", seed=1, synthetic=config) as logs:
        rows = logs.connection.execute("SELECT CAST(item_id AS VARCHAR), category FROM items").fetchall()
        names = sorted({category for _, category in rows})
        kept = names[1:3][::-1]
        ids, index = item_categories(logs, kept)
    expected = {item: kept.index(category) for item, category in rows if category in kept}
    assert dict(zip(ids.tolist(), index.tolist(), strict=True)) == expected
    assert len(expected) == 6
    assert ids.tolist() == sorted(ids.tolist())
    assert index.dtype == np.int64
