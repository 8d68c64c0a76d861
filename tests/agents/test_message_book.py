from __future__ import annotations

import json
import subprocess
import sys
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.message_book import QUERY_WEIGHT, TEXTS_FILE, VECTORS_FILE, Message, MessageBook
from agents.message_files import built_in_templates, templates_from_mapping
from agents.message_templates import TemplateError
from envs.offers import Channel, Offer, OfferKind

WIDTH = 24
WORDS = ("frzn pizza", "tomatoes", "hot cereal", "soft drinks", "dish detergents")

NONE = Offer("no offer", OfferKind.NONE)
PUSH = Offer("push", OfferKind.PUSH)
PERCENT = Offer("20%", OfferKind.PERCENT, slot=1, depth=0.2, max_discount=0.6, validity_weeks=2)
LETTER = Offer("letter", OfferKind.PERCENT, Channel.MAIL, 1, 0.2, 0.0, 0.6, 2)
THRESHOLD = Offer("40", OfferKind.THRESHOLD, min_spend=40.0, max_discount=2.0, validity_weeks=2)


def word_vector(word: str) -> npt.NDArray[np.float64]:
    return np.random.default_rng(zlib.crc32(word.encode())).standard_normal(WIDTH)


def embed(texts: Sequence[str]) -> npt.NDArray[np.float64]:
    """Mean of a random vector for each word, and a large part that all texts share."""
    words = [text.replace(".", " ").replace(",", " ").replace(":", " ").split() for text in texts]
    vectors = [np.mean([word_vector(word) for word in each], axis=0) for each in words]
    return 5.0 + np.stack(vectors).astype(np.float64)


def never(texts: Sequence[str]) -> npt.NDArray[np.float64]:
    raise AssertionError(f"nothing needs to be embedded: {list(texts)}")


def population(n: int = 300, seed: int = 0) -> npt.NDArray[np.float64]:
    return 3.0 + np.random.default_rng(seed).standard_normal((n, WIDTH))


SMALL = {
    "audience": {"regulars": {"like": "shops every week", "unlike": "shops seldom"}},
    "template": [
        {"name": "see", "text": "see {category}", "kinds": ["push"], "tone": "plain"},
        {"name": "get", "text": "get more {category} soon", "kinds": ["push"], "tone": "plain"},
        {"name": "thanks", "text": "thanks", "kinds": ["push"], "tone": "warm", "audience": "regulars"},
        {"name": "sun", "text": "sun {category}", "kinds": ["push"], "tone": "warm", "seasons": ["summer"]},
        {"name": "back", "text": "back", "kinds": ["push"], "tone": "warm", "told": ["last week nothing"]},
        {"name": "off", "text": "{percent}% off {category}", "kinds": ["percent"], "tone": "plain"},
        {"name": "save", "text": "{save} off {min_spend}", "kinds": ["threshold"], "tone": "plain"},
    ],
}


@pytest.fixture(scope="module")
def small() -> MessageBook:
    return MessageBook.build(templates_from_mapping(SMALL), WORDS, population(), embed)


@pytest.fixture(scope="module")
def built_in() -> MessageBook:
    return MessageBook.build(built_in_templates(), WORDS, population(), embed)


def choose(
    book: MessageBook,
    users: npt.NDArray[np.float64],
    offer: Offer = PUSH,
    slots: Sequence[int] = (0, 1, 2),
    covered: int = -1,
    season: str = "winter",
    query: str | None = None,
    text: str | None = None,
    last: str | None = None,
) -> list[Message]:
    n = len(users)
    chosen = book.best(
        [offer] * n,
        np.full(n, covered),
        np.tile(np.array(slots, dtype=np.int64), (n, 1)),
        users,
        season=season,
        query=query,
        user_texts=None if text is None else [text] * n,
        last_template=[last] * n,
    )
    return [message for message in chosen if message is not None]


def z(users: npt.NDArray[np.float64], p: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Straight from the definition, by the match of every user of the population."""
    match = population() @ p
    scaled: npt.NDArray[np.float64] = (users @ p - match.mean()) / match.std()
    return scaled


def test_the_best_text_is_that_of_a_plain_reckoning(small: MessageBook) -> None:
    users = population(40, seed=1)
    slots = (3, 1)
    by_hand = []
    for template in ("see {}", "get more {} soon"):
        p = embed([template.format(words) for words in WORDS])
        by_hand += [z(users, p[c] - p.mean(axis=0)) for c in slots]
    like, unlike = embed(["shops every week", "shops seldom"])
    scores = np.stack([*by_hand, z(users, like - unlike)], axis=1)
    names = [("see", 3), ("see", 1), ("get", 3), ("get", 1), ("thanks", None)]
    found = choose(small, users, slots=slots)
    assert [(one.template, one.category) for one in found] == [names[k] for k in scores.argmax(axis=1)]
    np.testing.assert_allclose([one.score for one in found], scores.max(axis=1), atol=1e-9)
    assert len({one.template for one in found}) == 3


def test_matches_have_mean_zero_and_spread_one_over_the_population(small: MessageBook) -> None:
    everywhere = np.tile(np.arange(len(WORDS)), (300, 1))
    match = small.vectors.copy_match(population(), np.array([0, 1]), everywhere)
    np.testing.assert_allclose(match.mean(axis=0), 0.0, atol=1e-9)
    np.testing.assert_allclose(match.std(axis=0), 1.0, atol=1e-9)
    audience = small.vectors.audience_match(population(), np.arange(7))
    np.testing.assert_allclose(audience.std(axis=0), [0, 0, 1, 0, 0, 0, 0], atol=1e-9)


@settings(max_examples=20, deadline=None)
@given(
    shift=st.lists(st.floats(-50, 50), min_size=WIDTH, max_size=WIDTH),
    common=st.lists(st.floats(-50, 50), min_size=WIDTH, max_size=WIDTH),
    stretch=st.floats(0.1, 10),
)
def test_what_all_users_or_all_texts_have_in_common_does_not_matter(
    shift: list[float], common: list[float], stretch: float
) -> None:
    catalogue = templates_from_mapping(SMALL)
    users = population(30, seed=2)

    def elsewhere(texts: Sequence[str]) -> npt.NDArray[np.float64]:
        return np.asarray(stretch * embed(texts) + np.array(common), dtype=np.float64)

    plain = MessageBook.build(catalogue, WORDS, population(), embed)
    moved = MessageBook.build(catalogue, WORDS, population() + np.array(shift), elsewhere)
    before = choose(plain, users)
    after = choose(moved, users + np.array(shift))
    assert [(m.template, m.category) for m in before] == [(m.template, m.category) for m in after]
    np.testing.assert_allclose([m.score for m in before], [m.score for m in after], atol=1e-6)


def test_ties_go_to_the_earlier_template_and_slot() -> None:
    def constant(texts: Sequence[str]) -> npt.NDArray[np.float64]:
        return np.ones((len(texts), WIDTH))

    book = MessageBook.build(templates_from_mapping(SMALL), WORDS, population(), constant)
    found = choose(book, population(20), slots=(4, 1))
    assert {(one.template, one.category, one.score) for one in found} == {("see", 4, 0.0)}
    alike = MessageBook.build(templates_from_mapping(SMALL), WORDS, np.ones((5, WIDTH)), embed)
    assert {one.template for one in choose(alike, population(20))} == {"see"}


def test_a_batch_is_its_rows(built_in: MessageBook) -> None:
    rng = np.random.default_rng(3)
    users = population(60, seed=3)
    offers = [[NONE, PUSH, PERCENT, LETTER, THRESHOLD][k] for k in rng.integers(5, size=60)]
    slots = rng.integers(len(WORDS), size=(60, 3))
    covered = np.array([slots[k, 0] if offer.slot else -1 for k, offer in enumerate(offers)])
    together = built_in.best(offers, covered, slots, users, season="spring")
    for k in range(60):
        alone = built_in.best(
            offers[k : k + 1], covered[k : k + 1], slots[k : k + 1], users[k : k + 1], season="spring"
        )[0]
        both = together[k]
        assert (alone is None) == (both is None) == (offers[k] is NONE)
        if alone is not None and both is not None:
            assert (alone.template, alone.text, alone.category) == (both.template, both.text, both.category)


def test_a_percent_coupon_names_what_it_covers_and_others_a_slot(built_in: MessageBook) -> None:
    users = population(200, seed=4)
    for one in choose(built_in, users, PERCENT, slots=(0, 1), covered=3):
        assert one.category == 3
        assert "soft drinks" in one.text.lower()
        assert "20%" in one.text
        assert "$0.60" in one.terms
    for one in choose(built_in, users, THRESHOLD, slots=(0, 1, -1)):
        assert one.category in (None, 0, 1)
        assert "$40" in one.text
    push = choose(built_in, users, PUSH, slots=(2, 4))
    assert {one.category for one in push} >= {2, 4}
    assert all(one.terms == "" for one in push)


def test_without_recommendations_a_text_names_no_category(built_in: MessageBook) -> None:
    users = population(3)
    chosen = built_in.best(
        [PUSH] * 3, np.full(3, -1), np.empty((3, 0), dtype=np.int64), users, season="summer"
    )
    assert {one.template for one in chosen if one} == {"push: weekly shop"}


def test_only_texts_of_the_season_and_the_channel_are_chosen(built_in: MessageBook) -> None:
    users = population(400, seed=5)
    by_name = {template.name: template for template in built_in.catalogue.templates}
    for season in ("winter", "spring", "summer", "autumn"):
        found = [by_name[one.template] for one in choose(built_in, users, season=season)]
        assert all(season in template.seasons for template in found)
        assert any(template.seasons == (season,) for template in found)
    assert "percent: letter" not in {one.template for one in choose(built_in, users, PERCENT, covered=0)}
    assert "percent: letter" in {one.template for one in choose(built_in, users, LETTER, covered=0)}


def test_what_a_text_claims_is_true_of_its_reader(built_in: MessageBook) -> None:
    users = population(400, seed=6)
    claims = {t.name for t in built_in.catalogue.templates if t.told}
    assert not claims & {one.template for one in choose(built_in, users)}
    regular = choose(built_in, users, text="shops every week , two trips . coupons never . last week milk")
    assert {one.template for one in regular} & claims == {"push: regular's shelf", "push: regular's thanks"}
    away = choose(built_in, users, text="shops seldom . last week nothing . two weeks ago nothing")
    assert {one.template for one in away} & claims == {"push: missed you", "push: been a while"}


def test_the_last_text_is_not_sent_again_while_another_fits(small: MessageBook) -> None:
    users = population(50, seed=7)
    first = choose(small, users)
    again = small.best(
        [PUSH] * 50,
        np.full(50, -1),
        np.tile([0, 1, 2], (50, 1)),
        users,
        season="winter",
        last_template=[one.template for one in first],
    )
    assert all(
        one is not None and one.template != before.template for one, before in zip(again, first, strict=True)
    )
    only = choose(small, users, PERCENT, covered=1, last="off")
    assert {one.template for one in only} == {"off"}
    assert [one.template for one in choose(small, users, last="no such text")] == [
        one.template for one in first
    ]


def test_a_query_brings_the_category_asked_for(built_in: MessageBook) -> None:
    users = population(100, seed=8)
    assert built_in.queries.understood("Two PIZZAS, and a tomato please!") == "pizza tomatoes"
    asked = choose(built_in, users, slots=(3, 4), query="a pizza for tonight")
    named = [one.category for one in asked if one.category is not None]
    assert np.mean([category == 0 for category in named]) > 0.8
    match = built_in.queries.match("cereal")
    assert match is not None
    assert match.argmax() == 2
    assert match.mean() == pytest.approx(0, abs=1e-9)
    assert match.std() == pytest.approx(1)
    for nothing in ("any diapers?", "", "the"):
        assert built_in.queries.match(nothing) is None
        assert choose(built_in, users, query=nothing) == choose(built_in, users)


def test_a_query_may_use_the_names_that_texts_give_to_categories() -> None:
    catalogue = templates_from_mapping(SMALL | {"names": {"frzn pizza": "deep-frozen pies"}})
    book = MessageBook.build(catalogue, WORDS, population(), embed)
    assert book.queries.understood("a PIE from the deep") == "frzn pizza"
    match = book.queries.match("pie")
    assert match is not None
    assert match.argmax() == 0


def test_a_query_adds_its_weight_to_the_score(small: MessageBook) -> None:
    users = population(5, seed=9)
    match = small.queries.match("detergent")
    assert match is not None
    plain = choose(small, users, PERCENT, covered=4)
    asked = choose(small, users, PERCENT, covered=4, query="detergent")
    for before, after in zip(plain, asked, strict=True):
        assert after.score - before.score == pytest.approx(QUERY_WEIGHT * match[4])


def test_a_stored_book_chooses_alike_and_embeds_nothing(built_in: MessageBook, tmp_path: Path) -> None:
    built_in.save(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {TEXTS_FILE, VECTORS_FILE}
    stored = MessageBook.load(tmp_path, never)
    assert stored.catalogue == built_in.catalogue
    users = population(100, seed=10)
    for offer, covered in ((PUSH, -1), (PERCENT, 2), (THRESHOLD, -1)):
        before = choose(built_in, users, offer, covered=covered)
        after = choose(stored, users, offer, covered=covered)
        assert [one.text for one in before] == [one.text for one in after]
        np.testing.assert_allclose([m.score for m in before], [m.score for m in after], atol=1e-4)


def test_a_damaged_book_is_refused(small: MessageBook, tmp_path: Path) -> None:
    with pytest.raises(TemplateError, match="no message texts can be read"):
        MessageBook.load(tmp_path, embed)
    small.save(tmp_path)
    content = json.loads((tmp_path / TEXTS_FILE).read_text())
    content["template"].pop()
    (tmp_path / TEXTS_FILE).write_text(json.dumps(content | {"template": content["template"]}))
    with pytest.raises(TemplateError):
        MessageBook.load(tmp_path, embed)
    small.save(tmp_path)
    (tmp_path / VECTORS_FILE).write_bytes((tmp_path / VECTORS_FILE).read_bytes()[:-400])
    with pytest.raises(TemplateError, match=r"no message texts can be read"):
        MessageBook.load(tmp_path, embed)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"covered": np.zeros(2, dtype=np.int64)}, r"covered has shape \(2,\), expected \(3,\)"),
        ({"slots": np.zeros((2, 3), dtype=np.int64)}, r"slots has shape \(2, 3\), expected \(3, 3\)"),
        ({"slots": np.zeros(3, dtype=np.int64)}, r"slots has shape \(3,\)"),
        ({"slots": np.full((3, 1), 9)}, r"slots must hold categories in -1\.\.4, got 9"),
        ({"covered": np.full(3, -2)}, r"covered must hold categories in -1\.\.4, got -2"),
        ({"embedding": np.zeros((3, 5))}, r"embedding has shape \(3, 5\), expected \(3, 24\)"),
        ({"last_template": ["a"]}, r"last_template has shape \(1,\)"),
        ({"user_texts": ["a"]}, r"user_texts has shape \(1,\)"),
        ({"season": "fall"}, "season must be one of"),
        ({"offers": [PERCENT] * 3}, "row 0: the texts for percent offers need a category"),
    ],
)
def test_bad_input_is_refused(small: MessageBook, changes: dict[str, object], message: str) -> None:
    given_ = {
        "offers": [PUSH] * 3,
        "covered": np.full(3, -1),
        "slots": np.zeros((3, 2), dtype=np.int64),
        "embedding": population(3),
        "season": "winter",
    } | changes
    with pytest.raises(TemplateError, match=message):
        small.best(**given_)  # type: ignore[arg-type]


def test_a_population_of_one_or_none_is_refused() -> None:
    for words, users in ((WORDS, population(1)), ((), population(9)), (WORDS, population(9)[0])):
        with pytest.raises(TemplateError, match="need categories and the embeddings of at least 2 users"):
            MessageBook.build(templates_from_mapping(SMALL), words, users, embed)


def test_choosing_needs_numpy_alone() -> None:
    script = (
        "import sys, agents.message_book; "
        "print(*[m for m in ('torch', 'scipy', 'pandas', 'pyarrow', 'onnxruntime') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == ""
