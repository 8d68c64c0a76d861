from __future__ import annotations

import numpy as np
import pytest

from experiments.comparison.segments import UNKNOWN, profile_attributes, segment_groups


def test_fifths_are_taken_in_each_campaign_for_itself() -> None:
    values = np.stack([np.arange(10.0), np.arange(10.0)[::-1] * 100])
    groups = segment_groups("basket value", values)
    assert list(groups) == ["lowest fifth", "second fifth", "middle fifth", "fourth fifth", "highest fifth"]
    assert groups["lowest fifth"].tolist() == [[k < 2 for k in range(10)], [k >= 8 for k in range(10)]]
    np.testing.assert_array_equal(np.sum(list(groups.values()), axis=0), np.ones((2, 10)))


def test_users_alike_are_in_one_group_and_empty_groups_are_left_out() -> None:
    values = np.array([[0.0] * 9 + [1.0]])
    groups = segment_groups("visit frequency", values)
    assert sum(int(found.sum()) for found in groups.values()) == 10
    assert all(found.any() for found in groups.values())
    assert any(found[0, :9].all() for found in groups.values())


def test_opt_in_has_two_groups() -> None:
    groups = segment_groups("opt-in", np.array([[1.0, 0.0, 1.0]]))
    assert {name: found[0].tolist() for name, found in groups.items()} == {
        "opted out": [False, True, False],
        "opted in": [True, False, True],
    }


def test_labels_of_several_words_are_told_from_values() -> None:
    profiles = [
        "age 45-54, income Under 15K, home ownership Owner, household size 2, household comp 2 Adults Kids",
        "age 35-44, income 50-74K, home ownership Renter, household size 5+, household comp 1 Adult No Kids",
        "",
        "age 45-54, household size 2",
    ]
    found = profile_attributes(profiles, least=1)
    assert {label: values.tolist() for label, values in found.items()} == {
        "age": ["45-54", "35-44", UNKNOWN, "45-54"],
        "income": ["Under 15K", "50-74K", UNKNOWN, UNKNOWN],
        "home ownership": ["Owner", "Renter", UNKNOWN, UNKNOWN],
        "household size": ["2", "5+", UNKNOWN, "2"],
        "household comp": ["2 Adults Kids", "1 Adult No Kids", UNKNOWN, UNKNOWN],
    }


def test_an_attribute_needs_two_groups_of_a_size() -> None:
    profiles = ["age 1, region north"] * 5 + ["age 2, region north"] * 4 + ["region south"]
    assert list(profile_attributes(profiles, least=1)) == ["age", "region"]
    assert list(profile_attributes(profiles, least=4)) == ["age"]
    assert profile_attributes(profiles, least=5) == {}


@pytest.mark.parametrize("profiles", [[], ["", ""], ["vip", "vip"]])
def test_without_profiles_there_are_no_attributes(profiles: list[str]) -> None:
    assert profile_attributes(profiles, least=1) == {}


def test_the_attributes_that_most_users_tell_are_kept() -> None:
    labels = "abcdefg"
    profiles = [", ".join(f"{label} {k % 2}" for label in labels[: 3 + k % 5]) for k in range(20)]
    # a, b and c are told by all, d by four in five, e by three in five.
    assert list(profile_attributes(profiles, least=1)) == list("abcde")
