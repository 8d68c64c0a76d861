from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pytest

from agents.bundle_writer import write_manifest
from agents.message_book import MessageBook
from agents.message_files import built_in_templates
from agents.serving import (
    BundleError,
    Context,
    CouponPolicy,
    DecisionInputError,
    OfferTerms,
    SentOffer,
    UserEvents,
    UserStates,
)
from agents.serving.columns import USER_COLUMNS
from agents.serving.reasons import Seen, reasons
from encoders.panel import Panel

CONTEXT = Context(week=20, weeks_left=4, dual_price=0.3)


class Exported(Protocol):
    """The fixture of conftest.py, which cannot be imported."""

    folder: Path
    panel: Panel


Copy = Callable[[], Path]


@pytest.fixture(scope="module")
def policy(exported: Exported) -> CouponPolicy:
    return CouponPolicy.load(exported.folder)


@pytest.fixture(scope="module")
def states(policy: CouponPolicy) -> UserStates:
    """1,500 users with random pasts; three blocks of the graph."""
    rng = np.random.default_rng(0)
    n, n_categories = 1500, len(policy.categories)
    user = np.zeros((n, len(USER_COLUMNS)), dtype=np.float32)
    user[:, :14] = rng.uniform(1.0, 6.0, (n, 14))
    user[:, USER_COLUMNS.index("opted_in")] = rng.random(n) < 0.8
    user[:, USER_COLUMNS.index("coupon_weeks_left")] = rng.random(n) < 0.2
    return UserStates(
        user_id=tuple(f"u{k}" for k in range(n)),
        category_recency=rng.integers(1, 61, (n, n_categories), dtype=np.uint8),
        category_slow=rng.uniform(0, 1, (n, n_categories)).astype(np.float16),
        category_fast=rng.uniform(0, 1, (n, n_categories)).astype(np.float16),
        recent=rng.integers(0, 16, (n, n_categories), dtype=np.uint8),
        user=user,
        messages=rng.integers(0, 256, n),
        deal_category=rng.integers(-1, n_categories, (n, 4)),
        deal_depth=np.full((n, 4), 0.2, dtype=np.float32),
        deal_weeks_ago=np.ones((n, 4), dtype=np.float32),
        embedding=rng.normal(size=(n, policy.encoder.width)).astype(np.float32),
    )


def test_decisions_say_what_was_drawn_and_how_probably(policy: CouponPolicy, states: UserStates) -> None:
    found = policy.decide(states, CONTEXT, rng=np.random.default_rng(1))
    n = len(states)
    assert found.user_id == states.user_id
    assert np.array_equal(found.propensity, found.probabilities[np.arange(n), found.offer])
    np.testing.assert_allclose(found.probabilities.sum(axis=1), 1.0, rtol=0, atol=1e-12)
    assert (found.probabilities[~found.mask] == 0).all()
    assert (found.propensity > 0).all()
    assert found.mask[:, 0].all()
    assert found.mask[np.arange(n), found.offer].all()
    first = policy.columns.index("allowed_0")
    assert np.array_equal(found.observation[:, first:] > 0.5, found.mask)
    assert (found.week, found.weeks_left, found.dual_price) == (20, 4, 0.3)
    assert found.pressure == pytest.approx(0.1)
    held = states.user[:, USER_COLUMNS.index("coupon_weeks_left")] > 0
    coupon = np.array([offer.is_coupon for offer in policy.catalogue])
    assert not (found.mask[held] & coupon).any()
    out = states.user[:, USER_COLUMNS.index("opted_in")] == 0
    message = np.array([offer.is_message for offer in policy.catalogue])
    assert not (found.mask[out] & message).any()


def test_threads_and_blocks_change_nothing(
    exported: Exported, policy: CouponPolicy, states: UserStates
) -> None:
    one = policy.decide(states, CONTEXT, rng=np.random.default_rng(1))
    two = CouponPolicy.load(exported.folder, threads=2).decide(states, CONTEXT, rng=np.random.default_rng(1))
    assert np.array_equal(one.probabilities, two.probabilities)
    assert np.array_equal(one.offer, two.offer)
    few = UserStates(states.user_id[:3], **states.feed(0, 3))
    alone = policy.decide(few, CONTEXT, rng=np.random.default_rng(1))
    np.testing.assert_allclose(alone.probabilities, one.probabilities[:3], atol=1e-6)


def test_numbers_given_decide_alone(policy: CouponPolicy, states: UserStates) -> None:
    few = UserStates(states.user_id[:40], **states.feed(0, 40))
    uniform = np.random.default_rng(5).random(40)
    found = policy.decide(few, CONTEXT, uniform=uniform)
    cumulative = found.probabilities.cumsum(axis=1)
    place = np.arange(40)
    assert (cumulative[place, found.offer] > uniform - 1e-12).all()
    before = np.where(found.offer > 0, cumulative[place, found.offer - 1], 0.0)
    assert (before <= uniform + 1e-12).all()
    # In another order each user has the same draw.
    order = np.random.default_rng(6).permutation(40)
    arrays: dict[str, Any] = {name: value[order] for name, value in few.feed(0, 40).items()}
    turned = UserStates(tuple(np.array(few.user_id)[order]), **arrays)
    again = policy.decide(turned, CONTEXT, uniform=uniform[order])
    assert np.array_equal(again.offer, found.offer[order])


def test_the_budget_left_masks_what_it_does_not_cover(policy: CouponPolicy, states: UserStates) -> None:
    for available in (0.0, 0.02, 0.62, 3.0):
        context = replace(CONTEXT, available=available)
        found = policy.decide(states, context, rng=np.random.default_rng(0))
        cost = np.array([offer.delivery_ticks + offer.liability_ticks for offer in policy.catalogue])
        assert not found.mask[:, cost > round(available * 10_000)].any()
        assert found.mask[:, cost <= round(available * 10_000)].any(axis=0).all()


def test_a_dearer_budget_sends_less(policy: CouponPolicy, states: UserStates) -> None:
    sent = [
        1.0
        - policy.decide(states, replace(CONTEXT, dual_price=price), rng=np.random.default_rng(0))
        .probabilities[:, 0]
        .mean()
        for price in (0.01, 1.0, 100.0)
    ]
    assert sent[0] > sent[1] > sent[2]


def test_what_is_sent_is_told_in_full(policy: CouponPolicy, states: UserStates) -> None:
    found = policy.decide(states, CONTEXT, rng=np.random.default_rng(3))
    records = found.records()
    json.dumps(records, allow_nan=False)
    kinds = set()
    for k, record in enumerate(records):
        terms = policy.catalogue[record["offer"]]
        kinds.add(terms.kind)
        assert record["offer_name"] == terms.name
        assert record["channel"] == terms.channel
        assert record["propensity"] == found.propensity[k]
        if terms.kind == "percent":
            assert record["category"] == policy.categories[found.slots[k, terms.slot - 1]]
            assert record["depth"] == terms.depth
        else:
            assert record["category"] is None
        if terms.kind == "threshold":
            assert record["depth"] == pytest.approx(terms.max_discount / terms.min_spend)
        assert record["reasons"]
        assert record["message"] is None  # the bundle of these tests has no texts
    assert kinds == {"none", "push", "percent", "threshold"}


def test_reasons_follow_from_what_was_seen(policy: CouponPolicy, states: UserStates) -> None:
    found = policy.decide(states, replace(CONTEXT, available=0.0), rng=np.random.default_rng(0))
    for k, given in enumerate(found.reasons):
        codes = {reason.code for reason in given}
        row = states.user[k]
        assert ("OPTED_OUT" in codes) == (row[USER_COLUMNS.index("opted_in")] == 0)
        assert ("COUPON_HELD" in codes) == (row[USER_COLUMNS.index("coupon_weeks_left")] > 0)
        assert codes - {"OPTED_OUT", "COUPON_HELD", "BUDGET_SHORT", "FREQUENCY_CAP"} == set()


def offer(kind: str, name: str, **terms: Any) -> OfferTerms:
    plain = {"channel": "push", "slot": 0, "depth": 0.0, "min_spend": 0.0, "max_discount": 0.0}
    rest = {"validity_weeks": 0, "delivery_cost": 0.0, "delivery_ticks": 0, "liability_ticks": 0}
    return OfferTerms(**{**plain, **rest, "kind": kind, "name": name, **terms})


OFFERS = (
    offer("none", "no offer"),
    offer("push", "push"),
    offer("percent", "coupon", channel="mail", slot=1, depth=0.2, max_discount=1.0),
)


def seen(**changes: Any) -> Seen:
    context = {
        "opted_in": 1.0,
        "messages_left": 2.0,
        "coupon_held": 0.0,
        "fatigue": 0.0,
        "log_visit_recency": 0.0,
        "visit_probability": 0.5,
    }
    context |= changes.pop("context", {})
    values: dict[str, Any] = {
        "uplift": np.array([0.0, 0.1, 0.3], dtype=np.float32),
        "use": np.array([0.0, 0.02, 0.2], dtype=np.float32),
        "allowed": np.array([True, True, True]),
        "probabilities": np.array([0.2, 0.3, 0.5]),
        "dual_price": 1.0,
    }
    return Seen(context=context, **(values | changes))


@pytest.mark.parametrize(
    ("chosen", "what", "codes"),
    [
        (2, {}, ["WORTH_ITS_BUDGET", "LIKELY_CATEGORY"]),
        (2, {"dual_price": 2.0}, ["BEYOND_THE_WEEK", "LIKELY_CATEGORY"]),
        (1, {}, ["WORTH_ITS_BUDGET", "RESTED", "DRAWN"]),
        (
            1,
            {"context": {"fatigue": 0.6, "log_visit_recency": np.log(6.0)}},
            ["WORTH_ITS_BUDGET", "LAPSED", "DRAWN"],
        ),
        (
            1,
            {"context": {"fatigue": 0.6, "visit_probability": 0.9}},
            ["WORTH_ITS_BUDGET", "FREQUENT_VISITOR", "DRAWN"],
        ),
        (0, {}, ["WAITING", "DRAWN"]),
        (0, {"dual_price": 50.0, "probabilities": np.array([1.0, 0.0, 0.0])}, ["NOT_WORTH_ITS_BUDGET"]),
        (0, {"allowed": np.array([True, False, False])}, ["BUDGET_SHORT", "DRAWN"]),
        (
            0,
            {
                "allowed": np.array([True, False, False]),
                "context": {"messages_left": 0.0, "coupon_held": 1.0},
            },
            ["FREQUENCY_CAP", "COUPON_HELD", "DRAWN"],
        ),
    ],
)
def test_codes_of_cases(chosen: int, what: dict[str, Any], codes: list[str]) -> None:
    category = "soft drinks" if chosen == 2 else None
    found = reasons(chosen, OFFERS, seen(**what), category)
    assert [reason.code for reason in found] == codes
    assert all(reason.words for reason in found)


# Input ---------------------------------------------------------------------------------------------


def test_what_cannot_be_decided_is_named(policy: CouponPolicy, states: UserStates) -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(DecisionInputError, match="either rng or uniform"):
        policy.decide(states, CONTEXT)
    with pytest.raises(DecisionInputError, match="either rng or uniform"):
        policy.decide(states, CONTEXT, rng=rng, uniform=np.zeros(len(states)))
    for wrong in (np.zeros(3), np.full(len(states), 1.0), np.full(len(states), np.nan)):
        with pytest.raises(DecisionInputError, match=r"1500 numbers in \[0, 1\)"):
            policy.decide(states, CONTEXT, uniform=wrong)
    twice = [UserEvents("a"), UserEvents("b"), UserEvents("a")]
    with pytest.raises(DecisionInputError, match=r"users\[2\] has the id of an earlier one"):
        policy.decide(twice, CONTEXT, rng=rng)
    with pytest.raises(DecisionInputError, match="no users"):
        policy.decide([], CONTEXT, rng=rng)
    many = [UserEvents(str(k)) for k in range(600)] + [
        UserEvents("x", sent=(SentOffer(policy.settings.first_day, "?"),))
    ]
    with pytest.raises(DecisionInputError, match=r"users\[88\]: .*\(users counted from 512\)"):
        policy.decide(many, CONTEXT, rng=rng)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"user": np.full((2, len(USER_COLUMNS)), np.nan, dtype=np.float32)},
            "user, row 0 holds what is not a finite",
        ),
        ({"user": np.ones((2, 3), dtype=np.float32)}, r"user has shape \(2, 3\)"),
        ({"messages": np.zeros(2)}, "messages holds float64 of shape"),
        ({"messages": np.zeros(3, dtype=np.int64)}, "for 2 users"),
        ({"category_recency": np.zeros((2, 12), dtype=np.uint8)}, "category_recency counts weeks from 1"),
        ({"text": ("a",)}, "text has 1 entries for 2 users"),
    ],
)
def test_states_that_are_none_are_named(states: UserStates, changes: dict[str, Any], said: str) -> None:
    arrays: dict[str, Any] = states.feed(0, 2) | {"user_id": ("a", "b")}
    with pytest.raises(DecisionInputError, match=said):
        UserStates(**(arrays | changes))


def test_states_of_another_shop_are_named(policy: CouponPolicy, states: UserStates) -> None:
    arrays = states.feed(0, 2)
    rng = np.random.default_rng(0)
    for name, said in (("category_slow", "category_slow has shape"), ("embedding", "embedding has shape")):
        other = arrays | {name: arrays[name][:, :2]}
        with pytest.raises(DecisionInputError, match=said):
            policy.decide(UserStates(("a", "b"), **other), CONTEXT, rng=rng)
    far = arrays | {"deal_category": np.full((2, 4), 99)}
    with pytest.raises(DecisionInputError, match=r"deal_category must be in -1..11"):
        policy.decide(UserStates(("a", "b"), **far), CONTEXT, rng=rng)


# Bundles -------------------------------------------------------------------------------------------


def test_another_catalogue_is_refused(copied: Copy) -> None:
    folder = copied()
    content = json.loads((folder / "policy.json").read_text())
    content["offers"] = content["offers"][:-1]
    (folder / "policy.json").write_text(json.dumps(content))
    write_manifest(folder)
    with pytest.raises(BundleError, match=r"policy.json has 10 offers, but policy.onnx was made for 11"):
        CouponPolicy.load(folder)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"extra": 1}, "unknown key 'extra'"),
        ({"first_day": "2018-01-02"}, "2018-01-02 is no Monday"),
        ({"first_day": "soon"}, "soon"),
        ({"category_words": ["a"]}, "not one for each"),
        ({"user_columns": ["fatigue"]}, "user_columns are not those of this runtime"),
        ({"horizon_weeks": 6}, r"pacing\[0\] has 5 weeks, the horizon 6"),
        ({"known_weeks": 3}, r"tables.npz: calendar has shape"),
        ({"default_budget_per_user": 0}, "default_budget_per_user must be above 0, not 0"),
    ],
)
def test_settings_that_contradict_are_refused(copied: Copy, changes: dict[str, Any], said: str) -> None:
    folder = copied()
    content = json.loads((folder / "policy.json").read_text())
    (folder / "policy.json").write_text(json.dumps(content | changes))
    write_manifest(folder)
    with pytest.raises(BundleError, match=said):
        CouponPolicy.load(folder)


def test_a_graph_that_is_none_is_refused(copied: Copy) -> None:
    folder = copied()
    (folder / "policy.onnx").write_bytes(b"not a graph")
    write_manifest(folder)
    with pytest.raises(BundleError, match=r"policy.onnx is not a graph"):
        CouponPolicy.load(folder)


def test_the_fingerprint_is_of_everything(copied: Copy) -> None:
    folder = copied()
    before = CouponPolicy.load(folder).fingerprint
    assert CouponPolicy.load(folder).fingerprint == before
    (folder / "notes.txt").write_text("by the way")
    write_manifest(folder)
    assert CouponPolicy.load(folder).fingerprint != before


def test_the_int8_encoder_decides_nearly_alike(exported: Exported, policy: CouponPolicy) -> None:
    small = CouponPolicy.load(exported.folder, encoder="int8")
    texts = ["shops every week . often kind a", "new customer"]
    one, other = policy.embed(texts), small.embed(texts)
    assert not np.array_equal(one, other)
    np.testing.assert_allclose(one, other, atol=0.2)
    np.testing.assert_array_equal(policy.embed(texts[::-1]), one[::-1])


def test_signatures(copied: Copy) -> None:
    ed25519 = pytest.importorskip("cryptography.hazmat.primitives.asymmetric.ed25519")
    private = ed25519.Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
    public = private.public_key().public_bytes_raw()
    folder = copied()
    with pytest.raises(BundleError, match=r"manifest.sig is missing: the policy is not signed"):
        CouponPolicy.load(folder, public_key=public)
    write_manifest(folder, bytes(range(32)))
    assert CouponPolicy.load(folder, public_key=public).fingerprint == CouponPolicy.load(folder).fingerprint
    other = ed25519.Ed25519PrivateKey.from_private_bytes(bytes(32)).public_key().public_bytes_raw()
    with pytest.raises(BundleError, match="does not sign"):
        CouponPolicy.load(folder, public_key=other)
    with pytest.raises(BundleError, match="not an Ed25519 key of 32 bytes"):
        CouponPolicy.load(folder, public_key=b"short")
    signature = folder / "manifest.sig"
    signature.write_bytes(bytes([signature.read_bytes()[0] ^ 1]) + signature.read_bytes()[1:])
    with pytest.raises(BundleError, match="does not sign"):
        CouponPolicy.load(folder, public_key=public)
    with pytest.raises(ValueError, match="has 32 raw bytes, this one 3"):
        write_manifest(folder, b"abc")
    write_manifest(folder)
    assert not signature.exists()


# Messages ------------------------------------------------------------------------------------------


def test_what_is_sent_has_a_text(exported: Exported, policy: CouponPolicy, copied: Copy) -> None:
    folder = copied()
    users = policy.embed([f"shops every week . often kind {letter}" for letter in "abcdefgh"])
    MessageBook.build(built_in_templates(), policy.settings.words, users, policy.embed).save(folder)
    write_manifest(folder)
    writing = CouponPolicy.load(folder)
    asked = [UserEvents(f"u{k}", "age 35-44" if k % 2 else "") for k in range(60)]
    context = replace(CONTEXT, dual_price=0.01)
    found = writing.decide(asked, context, rng=np.random.default_rng(0))
    sent = np.array([writing.catalogue[k].kind != "none" for k in found.offer])
    assert sent.sum() > 5
    assert [text is not None for text in found.message] == sent.tolist()
    for k in np.flatnonzero(sent):
        message, record = found.messages[k], found.records()[k]
        assert message is not None
        assert (record["message"], record["template"]) == (message.text, message.template)
        if writing.catalogue[found.offer[k]].kind == "percent":
            assert message.category == found.category_index[k]
    # Who had a template last time gets another.
    day = writing.settings.first_day
    again = [
        replace(user, sent=(SentOffer(day, "push only", template=found.records()[k]["template"]),))
        for k, user in enumerate(asked)
    ]
    other = writing.decide(again, context, uniform=np.full(60, 0.999))
    same = [
        one.template == before.template
        for one, before in zip(other.messages, found.messages, strict=True)
        if one is not None and before is not None
    ]
    assert same
    assert not any(same)
    (folder / "messages.npz").write_bytes(b"x")
    with pytest.raises(BundleError, match=r"messages\.npz was altered"):
        CouponPolicy.load(folder)
