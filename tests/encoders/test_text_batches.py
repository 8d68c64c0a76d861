from __future__ import annotations

import numpy as np
import torch

from encoders.response_data import AnchorTexts
from encoders.text_batches import shuffled_batches


def texts(count: int) -> AnchorTexts:
    lengths = np.random.default_rng(0).integers(3, 90, count)
    return AnchorTexts(
        tokens=[np.zeros(length, dtype=np.int32) for length in lengths],
        user=torch.arange(count),
        first_week=torch.zeros(count, dtype=torch.int64),
        last_week=torch.zeros(count, dtype=torch.int64),
    )


def test_every_text_comes_once_in_batches_of_similar_length() -> None:
    some = texts(500)
    batches = shuffled_batches(some, 16, np.random.default_rng(1))
    assert sorted(torch.cat(batches).tolist()) == list(range(500))
    assert sorted(len(batch) for batch in batches)[-31:] == [16] * 31

    def spread(found: list[torch.Tensor]) -> float:
        return float(np.mean([np.std([len(some.tokens[int(k)]) for k in batch]) for batch in found]))

    at_random = list(torch.from_numpy(np.random.default_rng(2).permutation(500)).split(16))
    assert spread(batches) < 0.3 * spread(at_random)


def test_a_count_draws_that_many_anew_each_time() -> None:
    rng = np.random.default_rng(1)
    first, second = (torch.cat(shuffled_batches(texts(500), 16, rng, 100)) for _ in range(2))
    assert len(first) == len(first.unique()) == 100
    assert set(first.tolist()) != set(second.tolist())
