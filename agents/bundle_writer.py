"""The files around the exported graphs: settings, tables, manifest and signature."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from agents.serving.bundle import (
    MANIFEST_FILE,
    SCHEMA_VERSION,
    SETTINGS_FILE,
    SIGNATURE_FILE,
    TABLES_FILE,
)
from agents.serving.columns import CALENDAR_ROWS, USER_COLUMNS
from agents.serving.pacing import BudgetPlan
from agents.serving.schema import check, policy_schema
from encoders.calendar import PromotionCalendar, month_start
from encoders.panel import Panel
from encoders.user_text import UserTextStyle, category_words
from envs.campaign import MarketSpec
from envs.coupons import REMEMBERED_DEALS
from envs.money import TICKS_PER_UNIT, to_ticks
from envs.offers import MOST_REMEMBERED_WEEKS, Catalogue

WEEKS_AHEAD = 520
"""Weeks after the log for which a bundle knows the days of the month."""

KEY_BYTES = 32

UNSEALED = frozenset({MANIFEST_FILE, SIGNATURE_FILE, "results.json"})
"""Files of an export folder that the manifest does not list."""


@dataclass(frozen=True)
class PolicyFacts:
    """What a bundle says of a policy besides its graphs.

    Attributes:
        market: that it was trained for.
        panel: the logs by week.
        columns: [o] names of the observation's columns.
        style: how much of a history user texts tell.
        max_tokens: cut of a text.
        plans: pacing by budget.
        default_budget_per_user: log's currency.
        provenance: where the policy comes from; plain JSON.
    """

    market: MarketSpec
    panel: Panel
    columns: Sequence[str]
    style: UserTextStyle
    max_tokens: int
    plans: Sequence[BudgetPlan]
    default_budget_per_user: float
    provenance: Mapping[str, Any]


def write_settings(folder: Path, facts: PolicyFacts) -> None:
    """Write ``policy.json``.

    Raises:
        ValueError: what it would say does not follow its schema.
    """
    market, panel = facts.market, facts.panel
    assumed, cap = market.predictor.assumed, market.catalogue.cap
    content = {
        "schema_version": SCHEMA_VERSION,
        "observation": list(facts.columns),
        "user_columns": list(USER_COLUMNS),
        "offers": _offers(market.catalogue),
        "frequency_cap": None if cap is None else asdict(cap),
        "ticks_per_unit": TICKS_PER_UNIT,
        "n_slots": market.catalogue.n_slots,
        "categories": [str(name) for name in panel.categories],
        "category_words": category_words(panel),
        "first_day": panel.first_day.isoformat(),
        "first_week_of_year": panel.first_week_of_year,
        "known_weeks": panel.n_weeks,
        "text": asdict(facts.style) | {"max_tokens": facts.max_tokens},
        "fatigue": {"gain": assumed.fatigue_gain, "memory": assumed.fatigue_memory},
        "remembered_deals": REMEMBERED_DEALS,
        "remembered_weeks": MOST_REMEMBERED_WEEKS,
        "horizon_weeks": market.horizon_weeks,
        "pacing": [asdict(plan) | {"weeks": [asdict(week) for week in plan.weeks]} for plan in facts.plans],
        "default_budget_per_user": facts.default_budget_per_user,
        "provenance": dict(facts.provenance),
    }
    check(content, policy_schema(), SETTINGS_FILE)
    _write(folder / SETTINGS_FILE, json.dumps(content, indent=2, ensure_ascii=False).encode() + b"\n")


def _offers(catalogue: Catalogue) -> list[dict[str, Any]]:
    return [
        {
            **asdict(offer),
            "kind": offer.kind.value,
            "channel": offer.channel.value,
            "delivery_ticks": to_ticks(offer.delivery_cost),
            "liability_ticks": to_ticks(offer.max_discount),
        }
        for offer in catalogue.offers
    ]


def write_tables(
    folder: Path,
    panel: Panel,
    calendar: PromotionCalendar,
    item_id: npt.NDArray[np.str_],
    item_category: npt.NDArray[np.int64],
) -> None:
    """Write ``tables.npz``: items to categories, promotion by week, and what stands in for unknown weeks.

    Args:
        folder: of the export.
        panel: the logs by week.
        calendar: of the log's weeks.
        item_id: [I] ascending.
        item_category: [I] category index of each.
    """
    rows = torch.stack([getattr(calendar, name) for name in CALENDAR_ROWS], dim=1).cpu().numpy()
    neutral = rows[: panel.split.train_end].mean(axis=0)
    neutral[CALENDAR_ROWS.index("category_trend")] = 0.0
    known = calendar.n_weeks
    temporary = folder / (TABLES_FILE + ".tmp")
    with temporary.open("wb") as file:
        np.savez_compressed(
            file,
            allow_pickle=False,
            item_id=item_id,
            item_category=item_category,
            calendar=rows.astype(np.float32),
            visit_trend=calendar.visit_trend.cpu().numpy().astype(np.float32),
            month_start=month_start(panel.first_day, known + WEEKS_AHEAD).numpy(),
            neutral=neutral.astype(np.float32),
        )
    os.replace(temporary, folder / TABLES_FILE)


def write_manifest(folder: Path, private_key: bytes | None = None) -> None:
    """Seal a bundle: ``manifest.json`` with the sha256 of every file, signed if there is a key.

    The last step of an export. What was signed before and is not now loses its signature.

    Args:
        folder: of the export.
        private_key: Ed25519, 32 raw bytes.

    Raises:
        ValueError: the key is none, or the package ``cryptography`` is not installed.
    """
    hashes = {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.iterdir())
        if path.is_file() and path.name not in UNSEALED
    }
    content = {"schema_version": SCHEMA_VERSION, "sha256": hashes}
    manifest = json.dumps(content, indent=2).encode() + b"\n"
    signature = None if private_key is None else _sign(manifest, private_key)
    (folder / SIGNATURE_FILE).unlink(missing_ok=True)
    _write(folder / MANIFEST_FILE, manifest)
    if signature is not None:
        _write(folder / SIGNATURE_FILE, signature)


def _sign(manifest: bytes, private_key: bytes) -> bytes:
    try:
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey  # type: ignore[import-not-found]
    except ImportError as error:
        raise ValueError("signing needs: pip install cryptography") from error
    if len(private_key) != KEY_BYTES:
        raise ValueError(f"an Ed25519 private key has {KEY_BYTES} raw bytes, this one {len(private_key)}")
    signature: bytes = Ed25519PrivateKey.from_private_bytes(private_key).sign(manifest)
    return signature


def _write(path: Path, content: bytes) -> None:
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_bytes(content)
    os.replace(temporary, path)
