"""Which importance weights may be trusted, with a value model beside them and without.

The limits were set on 72 logs of the study behind ``couponlab bench ope``, on other seeds than it reports:
wide enough that few good estimates are lost, tight enough that trusted intervals cover 95% and that nearly
all estimates off by more than 30% are turned down.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class WeightLimits:
    """How bad weights may be; below a minimum or above a maximum an estimate is of no use.

    Attributes:
        caution_ess: effective episodes below which normal theory is doubtful.
        minimum_ess: below which it is void.
        caution_share: of the total weight that one episode may carry.
        maximum_share: the same.
        spare_k: by how much the shape k̂ of the weights' tail may exceed what is reliable for a mean of so
            many weights.
        caution_z: standard errors by which the mean weight may miss 1, its expectation: where it does, users
            whom the target treats otherwise are missing from the log, and ESS counts only those who are not.
        maximum_z: the same.
        caution_clusters: effective clusters behind the estimate's variance.
        minimum_clusters: the same.
    """

    caution_ess: float
    minimum_ess: float
    caution_share: float
    maximum_share: float
    spare_k: float
    caution_z: float
    maximum_z: float
    caution_clusters: float
    minimum_clusters: float


WEIGHTS_ALONE = WeightLimits(
    caution_ess=400.0,
    minimum_ess=50.0,
    caution_share=0.05,
    maximum_share=0.3,
    spare_k=0.0,
    caution_z=2.5,
    maximum_z=4.0,
    caution_clusters=80.0,
    minimum_clusters=5.0,
)
"""Limits where outcomes themselves are weighted."""
WEIGHTED_RESIDUALS = WeightLimits(
    caution_ess=200.0,
    minimum_ess=20.0,
    caution_share=0.1,
    maximum_share=0.4,
    spare_k=0.2,
    caution_z=4.0,
    maximum_z=np.inf,
    caution_clusters=20.0,
    minimum_clusters=4.0,
)
"""Limits where a value model stands for the users whom the log lacks."""
