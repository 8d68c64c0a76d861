from __future__ import annotations

from collections.abc import Callable

import numpy as np
from sklearn.metrics import roc_auc_score

from encoders.history import USER_FEATURES
from encoders.response_data import ResponseData
from experiments.backtest.visit_peers import RFM_FEATURES, rfm_visit_probability


def test_recency_frequency_and_monetary_value_tell_regulars_from_rare_guests(
    make_data: Callable[..., ResponseData],
) -> None:
    data = make_data(n_users=400, seed=2, visit_spread=1.5)
    split = data.panel.split
    weeks = range(split.tune_end, split.report_end)
    probability = rfm_visit_probability(data, range(4, split.tune_end), weeks)
    visited = data.visited[list(weeks)].numpy()
    assert probability.shape == visited.shape
    assert set(RFM_FEATURES) <= set(USER_FEATURES)
    assert roc_auc_score(visited.ravel(), probability.ravel()) > 0.75
    np.testing.assert_allclose(probability.mean(), visited.mean(), atol=0.04)
