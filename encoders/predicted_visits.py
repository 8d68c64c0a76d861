"""Visits beside what the calibrated heads expected of them: what is fitted on residuals reads these."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from encoders.response import ResponseHeads
from encoders.response_data import ResponseData, UserWeeks

_ROWS = 2048


@dataclass(frozen=True)
class PredictedVisits:
    """r user-weeks with a visit.

    Attributes:
        week: [r] 0-based week index.
        weight: [r] how often the row counts.
        probability: [r, C] of a purchase, given the visit.
        bought: [r, C] bool.
        further_trips: [r] expected number of trips after the first.
        trips: [r] shopping trips, at least 1.
        expected_basket: [r] expected spend in the modelled categories given the visit, currency.
        expected_spend: [r] the same given what was bought.
        modelled_spend: [r] spend in the modelled categories, currency.
        other_spend: [r] spend in all others.
    """

    week: torch.Tensor
    weight: torch.Tensor
    probability: torch.Tensor
    bought: torch.Tensor
    further_trips: torch.Tensor
    trips: torch.Tensor
    expected_basket: torch.Tensor
    expected_spend: torch.Tensor
    modelled_spend: torch.Tensor
    other_spend: torch.Tensor

    @classmethod
    @torch.no_grad()
    def of_rows(cls, heads: ResponseHeads, data: ResponseData, rows: UserWeeks) -> PredictedVisits:
        """Predict the rows with a visit.

        Args:
            heads: calibrated, on the CPU.
            data: states, calendar and labels.
            rows: user-weeks, with and without a visit.
        """
        rows = rows.where(data.visited[rows.week, rows.user] & (rows.weight > 0))
        probability, further, basket, of_bought = [], [], [], []
        bought = data.bought[rows.week, rows.user]
        done = 0
        for chunk in rows.chunks(_ROWS):
            state = data.tape.before(chunk.week, chunk.user)
            utilities = heads(state, chunk.embedding, data.calendar.weeks(chunk.week))
            p = torch.sigmoid(utilities.purchase)
            spend = torch.exp(utilities.log_spend) * heads.expected_spend_factor
            probability.append(p)
            further.append(heads.mean_further_trips(state))
            basket.append((p * spend).sum(dim=1))
            of_bought.append((spend * bought[done : done + len(chunk)]).sum(dim=1))
            done += len(chunk)
        user, week = rows.user.numpy(), rows.week.numpy()
        modelled = torch.from_numpy(data.panel.category_spend[user, week].sum(axis=1))
        return cls(
            week=rows.week,
            weight=rows.weight,
            probability=torch.cat(probability),
            bought=bought,
            further_trips=torch.cat(further),
            trips=torch.from_numpy(data.panel.trips[user, week]).float(),
            expected_basket=torch.cat(basket),
            expected_spend=torch.cat(of_bought),
            modelled_spend=modelled,
            other_spend=(torch.from_numpy(data.panel.basket_spend[user, week]) - modelled).clamp(min=0.0),
        )
