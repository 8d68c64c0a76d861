"""Precisions of an encoder for inference: fp32, bf16, and int8 with a scale per token."""

from __future__ import annotations

import copy
from typing import Literal

import torch
from torch import nn

from encoders.bert import TextEncoder

Precision = Literal["fp32", "bf16", "int8"]


def choose_precision(device: str | torch.device = "cpu") -> Precision:
    """Return the fastest precision that keeps embeddings: bf16 where matrix units multiply it, else fp32.

    Measured on 2 cores of a Xeon, texts a second. With AMX, MiniLM: fp32 78, bf16 190, int8 69; ``tiny``:
    fp32 910, bf16 1,580, int8 640. With AMX switched off in oneDNN bf16 is slower than fp32 (MiniLM 17
    against 20, ``tiny`` 620 against 730) even where AVX-512 has bf16 products, and int8 at most a fifth
    faster. As int8 moves embeddings 40 times as far from fp32 as bf16 does, it is taken only by name.

    Args:
        device: where the encoder runs.
    """
    if torch.device(device).type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    return "bf16" if torch.cpu._is_amx_tile_supported() else "fp32"


def with_precision(encoder: TextEncoder, precision: Precision, device: str | torch.device) -> TextEncoder:
    """Return the encoder for inference at a precision; a copy, unless that is fp32.

    The weights themselves are converted, rather than cast in passing by autocast: the residual stream, too,
    then moves half the bytes, while kernels accumulate in fp32 either way. On a CPU that embeds a quarter
    more texts a second.

    Args:
        encoder: fp32 weights, on ``device``.
        precision: of weights and activations in BERT.
        device: where the encoder runs.

    Raises:
        ValueError: int8 on another device than a CPU.
    """
    if precision == "fp32":
        return encoder
    if precision == "bf16":
        return copy.deepcopy(encoder).to(torch.bfloat16)
    if torch.device(device).type != "cpu":
        raise ValueError(f"int8 embedding runs on a CPU only, not on {device}; take bf16")
    converted = copy.deepcopy(encoder)
    _quantise_linears(converted.bert)
    return converted


class Int8Linear(nn.Module):
    """A linear layer in int8: weights with a scale per output, activations with a scale per token.

    One scale for a whole batch of activations, which is what torch.ao's dynamic quantisation has, loses
    BERT's outlier tokens: cosine .90 to fp32 on MiniLM, against .997 here.

    Args:
        linear: the layer to convert, with a bias.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight = linear.weight.detach().float()
        self.scale: torch.Tensor
        self.weight: torch.Tensor
        self.bias: torch.Tensor
        self.register_buffer("scale", _scale(weight)[:, 0])
        self.register_buffer("weight", (weight / self.scale[:, None]).round().to(torch.int8).t().contiguous())
        self.register_buffer("bias", linear.bias.detach().float())

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return [..., out] float32 of inputs [..., in] float32."""
        rows = inputs.reshape(-1, inputs.shape[-1])
        scale = _scale(rows)
        product = torch._int_mm((rows / scale).round_().to(torch.int8), self.weight)
        out = product.float().mul_(scale).mul_(self.scale).add_(self.bias)
        return out.reshape(*inputs.shape[:-1], -1)


def _scale(rows: torch.Tensor) -> torch.Tensor:
    """What one step of int8 is worth in each row, [..., 1]; a row of zeros keeps a finite one."""
    return rows.abs().amax(dim=-1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny * 127) / 127


def _quantise_linears(module: nn.Module) -> None:
    for name, child in module.named_children():
        if isinstance(child, nn.Linear):
            setattr(module, name, Int8Linear(child))
        else:
            _quantise_linears(child)
