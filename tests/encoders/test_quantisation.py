from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from transformers import BertForPreTraining

from encoders.bert import TextEncoder
from encoders.quantisation import Int8Linear, choose_precision, with_precision


def test_int8_equals_the_product_of_the_rounded_factors() -> None:
    torch.manual_seed(0)
    linear = nn.Linear(48, 32)
    inputs = torch.randn(3, 7, 48)
    inputs[0, 0] *= 1000.0  # an outlier token must not cost the others their digits

    def rounded(rows: torch.Tensor) -> torch.Tensor:
        step = rows.abs().amax(dim=-1, keepdim=True) / 127
        return (rows / step).round() * step

    with torch.no_grad():
        expected = rounded(inputs) @ rounded(linear.weight).T + linear.bias
        got = Int8Linear(linear)(inputs)
        exact = linear(inputs)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
    assert (got - exact)[1:].abs().max() < 0.05


def test_int8_of_zeros_is_the_bias() -> None:
    linear = nn.Linear(16, 8)
    nn.init.zeros_(linear.weight)
    out = Int8Linear(linear)(torch.zeros(2, 16))
    torch.testing.assert_close(out, linear.bias.detach().expand(2, 8))


def test_int8_keeps_the_projection_and_refuses_a_gpu(make_bert: Callable[..., BertForPreTraining]) -> None:
    encoder = TextEncoder(make_bert().bert, 5)
    converted = with_precision(encoder, "int8", "cpu")
    assert not any(type(module) is nn.Linear for module in converted.bert.modules())
    assert type(converted.project) is nn.Linear
    assert any(type(module) is nn.Linear for module in encoder.bert.modules())
    assert with_precision(encoder, "fp32", "cpu") is encoder
    with pytest.raises(ValueError, match="CPU only"):
        with_precision(encoder, "int8", "cuda")


@pytest.mark.parametrize("amx", [True, False])
def test_auto_takes_bf16_where_matrix_units_multiply_it(monkeypatch: pytest.MonkeyPatch, amx: bool) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    assert choose_precision("cpu") == ("bf16" if amx else "fp32")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: amx)
    assert choose_precision("cuda") == ("bf16" if amx else "fp32")
