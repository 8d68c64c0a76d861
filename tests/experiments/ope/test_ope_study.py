from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from envs.tabular_solution import evaluate, myopic_rule
from experiments.benchmarks.ope_study.estimates import (
    ESTIMATORS,
    OVERLAPS,
    VERDICTS,
    StudyPlan,
    evaluate_log,
    log_of,
    log_seed,
    run_study,
    truth_of,
)
from experiments.benchmarks.ope_study.logs import write_log
from experiments.benchmarks.ope_study.market import StudyMarket, pooled
from experiments.benchmarks.ope_study.policies import (
    behaviour_policy,
    candidate_policies,
    probabilities_at,
    production_policy,
)
from experiments.benchmarks.ope_study.ranking import RankingPlan, by_state, rank_correlations, rank_one
from experiments.ope.selection import kendall_tau


@pytest.mark.parametrize("sees_state", [False, True])
def test_the_order_of_policies_by_fitted_q_alone(sees_state: bool) -> None:
    plan = RankingPlan(horizons=(2,), overlaps=OVERLAPS[:1], seeds=range(2), n_users=600, by_state=sees_state)
    found = rank_correlations(plan, workers=1)
    assert found == [rank_one(plan, k)[1] for k in range(2)]
    assert all(0.3 < tau < 1.0 for tau in found)
    if not sees_state:
        # The same as the study's own DM, whose folds have the same luck.
        study = run_study(replace_seeds(plan), workers=1)
        dm = study.value[:, :, ESTIMATORS.index("DM")]
        assert found == [kendall_tau(value, truth) for value, truth in zip(dm, study.truth, strict=True)]


def replace_seeds(plan: RankingPlan) -> StudyPlan:
    """The same logs as a plan of the study."""
    return StudyPlan(plan.horizons, plan.overlaps, plan.seeds, plan.n_users, n_bootstrap=20)


def test_a_log_by_state_is_the_same_log_seen_more_finely() -> None:
    plan = StudyPlan(horizons=(3,), n_users=50)
    log, _ = log_of(plan, 3, OVERLAPS[0], 0)
    finer = by_state(log)
    names = finer.observation_names
    for row in (0, 1, 77, 149):
        shown = {name for name, value in zip(names, finer.observation[row], strict=True) if value}
        assert shown == {f"segment_{int(log.segment[row])}", f"state_{int(log.state[row])}"}
    inner = ~finer.is_last[:-1]
    np.testing.assert_array_equal(finer.next_observation[:-1][inner], finer.observation[1:][inner])
    for name in ("action", "reward", "cost", "propensity", "user", "week"):
        np.testing.assert_array_equal(getattr(finer, name), getattr(log.dataset, name))


@pytest.fixture(scope="module")
def study() -> StudyMarket:
    return StudyMarket.demo(4)


@pytest.fixture(scope="module")
def policies(study: StudyMarket) -> dict[str, torch.Tensor]:
    return candidate_policies(study.believed)


def test_the_shop_sees_a_noisy_segment(study: StudyMarket) -> None:
    share = study.world.share.reshape(5, 5)  # type, segment
    np.testing.assert_allclose((share.diagonal() / share.sum(dim=1)).numpy(), 0.7)
    np.testing.assert_allclose(study.believed.share.numpy(), share.sum(dim=0).numpy())
    assert study.observation.shape == (5, study.world.n_states, len(study.observation_names))


def test_pooling_keeps_means_and_leaves_single_types_alone(study: StudyMarket) -> None:
    world = study.world
    for name in ("expected_margin", "expected_cost", "transition"):
        mean = torch.stack(
            [
                torch.einsum(
                    "g,g...->...", world.share[study.segment == z], getattr(world, name)[study.segment == z]
                )
                / world.share[study.segment == z].sum()
                for z in range(5)
            ]
        )
        torch.testing.assert_close(getattr(study.believed, name), mean)
    same = pooled(world, torch.arange(world.n_types))
    torch.testing.assert_close(same.outcome, world.outcome)
    torch.testing.assert_close(same.expected_margin, world.expected_margin)


def test_candidates_are_many_distinct_and_allowed(
    study: StudyMarket, policies: dict[str, torch.Tensor]
) -> None:
    assert len(policies) >= 20
    for rule in policies.values():
        torch.testing.assert_close(rule.sum(dim=-1), torch.ones(rule.shape[:-1], dtype=torch.float64))
        assert not bool((rule[~study.believed.allowed] > 0).any())
    values = [study.value(rule) for rule in policies.values()]
    assert len({round(value, 6) for value in values}) == len(values)
    # What plans for profit on the shop's beliefs is best in the world too.
    assert max(zip(values, policies, strict=True))[1] == "planned at 1, 100%"


def test_value_is_margin_less_cost_of_the_world(study: StudyMarket) -> None:
    rule = myopic_rule(study.believed, 1.0)
    found = evaluate(study.world, rule[:, study.segment])
    assert study.value(rule) == pytest.approx(float(found.margin) - float(found.cost))


@pytest.mark.parametrize("overlap", OVERLAPS, ids=lambda overlap: overlap.name)
def test_logs_are_what_the_behaviour_policy_does(study: StudyMarket, overlap: object) -> None:
    assert isinstance(overlap, type(OVERLAPS[0]))
    behaviour = behaviour_policy(study.believed, overlap.temperature, overlap.exploration)
    assert bool((behaviour > 0)[study.believed.allowed].all())
    log = write_log(study, behaviour, n_users=6000, seed=3)
    data = log.dataset
    assert data.n_episodes == 6000
    assert data.n_steps == 24_000
    assert data.behaviour_probabilities is not None
    np.testing.assert_array_equal(
        data.behaviour_probabilities, behaviour[log.week, log.segment, log.state].numpy()
    )
    # Offers come as often as their probabilities say.
    sent = np.eye(4)[data.action] - data.behaviour_probabilities
    error = sent.std(axis=0) / np.sqrt(data.n_steps)
    assert (np.abs(sent.mean(axis=0)) < 4 * error).all()
    # And the mean profit is the policy's exact value.
    profit = np.bincount(data.episode, data.reward - data.cost)
    assert abs(profit.mean() - study.value(behaviour)) < 4 * profit.std() / np.sqrt(6000)


def test_overlap_orders_the_logs(study: StudyMarket) -> None:
    production = production_policy(study.believed)

    def mean_square_ratio(temperature: float, exploration: float) -> float:
        """Chi-square distance of always sending the large coupon from the log's policy, plus 1."""
        behaviour = behaviour_policy(study.believed, temperature, exploration)
        log = write_log(study, production, n_users=500, seed=0)
        target = candidate_policies(study.believed)["large coupon, 100%"]
        pair = probabilities_at({"t": target, "b": behaviour}, log.week, log.segment, log.state)
        return float((pair["t"] ** 2 / pair["b"].clamp(min=1e-12)).sum(dim=1).mean())

    distances = [mean_square_ratio(overlap.temperature, overlap.exploration) for overlap in OVERLAPS]
    assert distances == sorted(distances)


def test_no_two_logs_share_their_luck() -> None:
    plan = StudyPlan()
    assert len({log_seed(*task) for task in plan.tasks()}) == len(plan.tasks()) == 450


def test_the_same_log_twice(study: StudyMarket) -> None:
    rule = production_policy(study.believed)
    one, two, other = (write_log(study, rule, n_users=50, seed=seed).dataset for seed in (1, 1, 2))
    np.testing.assert_array_equal(one.reward, two.reward)
    np.testing.assert_array_equal(one.action, two.action)
    assert not np.array_equal(one.action, other.action)


SMALL = StudyPlan(horizons=(2,), overlaps=OVERLAPS[:1], seeds=range(2), n_users=150, n_bootstrap=20)


def test_a_small_study_lays_estimates_beside_the_truth() -> None:
    logs: list[None] = []
    found = run_study(SMALL, workers=1, on_log=lambda: logs.append(None))
    assert len(logs) == 2
    assert found.value.shape == (2, len(found.policies), len(ESTIMATORS))
    np.testing.assert_array_equal(found.truth[0], list(truth_of(2).values()))
    row = evaluate_log(SMALL, 2, OVERLAPS[0], 1)[5]
    assert [result.value for result in row] == found.value[1, 5].tolist()
    assert [result.ci_low for result in row] == found.low[1, 5].tolist()
    assert [result.verdict for result in row] == [VERDICTS[k] for k in found.verdict[1, 5]]
    assert {result.policy for result in row} == {found.policies[5]}
    assert not np.array_equal(found.value[0], found.value[1])


@pytest.mark.slow
def test_a_study_does_not_depend_on_its_workers() -> None:
    here, there = run_study(SMALL, workers=1), run_study(SMALL, workers=2)
    for name in ("truth", "value", "low", "high", "verdict"):
        np.testing.assert_array_equal(getattr(here, name), getattr(there, name))


def test_an_estimate_finds_the_truth_in_a_well_supported_log() -> None:
    """The policy in place from a log that it nearly wrote: within four standard errors by every estimator."""
    plan = StudyPlan(n_users=3000, n_bootstrap=100)
    overlap = replace(OVERLAPS[1], exploration=0.02)
    truth = truth_of(2)["in place"]
    policy = list(truth_of(2)).index("in place")
    for result in evaluate_log(plan, 2, overlap, 0)[policy]:
        assert abs(result.value - truth) < (result.ci_high - result.ci_low), result
