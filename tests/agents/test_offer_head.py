"""The shared hidden layer of the offers: its own gradient beside automatic differentiation."""

from __future__ import annotations

import pytest
import torch

from agents import offer_head as module
from agents.offer_head import offer_head


def drawn(n: int, k: int = 5, width: int = 4, n_features: int = 3, n_out: int = 2) -> list[torch.Tensor]:
    """Context, features, W, V and b in double precision; all but the features ask for a gradient."""
    generator = torch.Generator().manual_seed(n)
    shapes = [(n, width), (n, k, n_features), (width, n_features), (n_out, width), (n_out,)]
    found = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    return [value.requires_grad_(place != 1) for place, value in enumerate(found)]


def plain(
    context: torch.Tensor,
    features: torch.Tensor,
    inner: torch.Tensor,
    outer: torch.Tensor,
    bias: torch.Tensor,
) -> torch.Tensor:
    """The formula, written with einsum."""
    hidden = torch.tanh(context[:, None] + torch.einsum("nkf,hf->nkh", features, inner))
    return torch.einsum("nkh,oh->nko", hidden, outer) + bias


@pytest.mark.parametrize("block_values", [1, 45, 2**17], ids=["a row", "two rows", "all rows"])
def test_value_and_gradient_are_those_of_the_formula(
    block_values: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BLOCK_VALUES", block_values)
    ours, theirs = drawn(7), drawn(7)
    found, expected = offer_head(*ours), plain(*theirs)
    torch.testing.assert_close(found, expected)
    weight = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    (found * weight).sum().backward()
    (expected * weight).sum().backward()
    for one, other in zip(ours, theirs, strict=True):
        if other.grad is None:
            assert one.grad is None
        else:
            torch.testing.assert_close(one.grad, other.grad)
    assert torch.autograd.gradcheck(lambda c, w, v, b: offer_head(c, ours[1], w, v, b), (ours[0], *ours[2:]))


def test_without_a_gradient_it_is_the_same() -> None:
    arguments = drawn(6)
    with torch.no_grad():
        found = offer_head(*arguments)
    torch.testing.assert_close(found, offer_head(*arguments).detach())


def test_no_rows_at_all() -> None:
    arguments = drawn(0)
    out = offer_head(*arguments)
    assert out.shape == (0, 5, 2)
    out.sum().backward()
    for value in (arguments[2], arguments[3], arguments[4]):
        assert value.grad is not None
        assert not value.grad.any()
