"""What logged users take from a shared budget week by week: money spent and liability reserved.

The ledger keeps spent + reserved within the budget in every week, and a coupon reserves its worst case while
it is out (:mod:`envs.ledger`). What the budget has to hold is therefore the highest commitment of any week,
which is far above what is paid in the end. A log holds all that is needed to work it out.
"""

from __future__ import annotations

import numpy as np

from experiments.ope.logged_dataset import FloatArray, LoggedDataError, LoggedDataset

HELD = "coupon_held"
"""Observation column: 1 where the user holds a coupon at the start of the week."""


def commitment_change(dataset: LoggedDataset, liability: FloatArray, delivery_cost: FloatArray) -> FloatArray:
    """Return how much each step adds to its user's commitment, [N], in the log's currency.

    A user's commitment in week t, once its offers are sent, is

        Σ_{s < t} cost_s + delivery cost of week t + liability of the coupon held after issuing,

    and the changes of an episode's steps up to t add up to it. A coupon that is redeemed or expires gives its
    liability back in the week after. Nobody holds two coupons at a time.

    Args:
        dataset: logged without a cap, from the start of a campaign, so that every offer chosen was sent.
        liability: [K] most that the coupon of an offer can cost; 0 where no coupon is issued.
        delivery_cost: [K] charged when the offer is sent.

    Raises:
        LoggedDataError: the observations do not tell who holds a coupon, somebody holds one that was issued
            before the log starts, or gets a second one.
        ValueError: there are not K liabilities and delivery costs.
    """
    for name, values in (("liability", liability), ("delivery_cost", delivery_cost)):
        if values.shape != (dataset.n_offers,):
            raise ValueError(f"{name} has shape {values.shape}, expected ({dataset.n_offers},)")
    if HELD not in dataset.observation_names:
        raise LoggedDataError(f"observation_names lack {HELD!r}: liability that is out cannot be followed")
    held = dataset.observation[:, dataset.observation_names.index(HELD)] > 0.5
    issued = liability[dataset.action]
    for wrong, rule in (
        (held & (dataset.position == 0), "a coupon is held that was issued before the log starts"),
        (held & (issued > 0), "a second coupon was issued to somebody who holds one"),
    ):
        if wrong.any():
            row = int(wrong.argmax())
            raise LoggedDataError(f"row {row} (user {dataset.user[row]}, week {dataset.week[row]}): {rule}")
    reserved = issued.astype(np.float64)
    spent = np.zeros(dataset.n_steps)
    # Weeks one after the other, all users at once: row - 1 is the same user a week before.
    for week in range(1, int(dataset.position.max()) + 1):
        rows = np.flatnonzero(dataset.position == week)
        reserved[rows] += held[rows] * reserved[rows - 1]
        spent[rows] = spent[rows - 1] + dataset.cost[rows - 1]
    committed = spent + delivery_cost[dataset.action] + reserved
    before = np.where(dataset.position > 0, np.roll(committed, 1), 0.0)
    return np.asarray(committed - before)
