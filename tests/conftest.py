"""Settings of all tests."""

from __future__ import annotations

import torch
from hypothesis import settings

# The first call of a torch kernel is slow, and so are shared runners: no deadline per example.
settings.register_profile("couponlab", deadline=None)
settings.load_profile("couponlab")

# The tensors are tiny: a second thread only waits, and on a busy machine for long.
torch.set_num_threads(1)
