"""Peers for the visit prediction: RFM logistic regression, and LightGBM on all user features."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from encoders.history import USER_FEATURES
from encoders.response_data import ResponseData
from experiments.backtest.features import visit_rows

DoubleArray = npt.NDArray[np.float64]

RFM_FEATURES = ("log_visit_recency", "slow_visit_logit", "log_basket_spend")
"""Recency, frequency and monetary value, the customer scores of direct marketing (Bult & Wansbeek 1995)."""


def rfm_visit_probability(
    data: ResponseData, fitting_weeks: Sequence[int], weeks: Sequence[int]
) -> DoubleArray:
    """Fit a logistic regression of visits on recency, frequency and monetary value; predict, [W, n].

    Args:
        data: states and visits.
        fitting_weeks: 0-based; it has nothing to tune, so it may have the tuning weeks too.
        weeks: W weeks to predict, 0-based.
    """
    columns = [USER_FEATURES.index(name) for name in RFM_FEATURES]
    train, report = visit_rows(data, fitting_weeks), visit_rows(data, weeks)
    model = make_pipeline(StandardScaler(), LogisticRegression())
    model.fit(train.features[:, columns], train.label)
    out: DoubleArray = model.predict_proba(report.features[:, columns])[:, 1].astype(np.float64)
    return out.reshape(len(weeks), -1)
