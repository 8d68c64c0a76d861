"""Learning-rate schedule as a pure function of progress, so that resuming needs no scheduler state."""

from __future__ import annotations

import math


def warmup_cosine(step: int, total_steps: int, warmup_share: float = 0.1) -> float:
    """Return the factor on the peak learning rate: linear warm-up, then half a cosine down to zero."""
    warmup = max(1, int(total_steps * warmup_share))
    if step < warmup:
        return (step + 1) / warmup
    done = (step - warmup) / max(1, total_steps - warmup)
    return 0.5 * (1.0 + math.cos(math.pi * min(1.0, done)))
