"""Babysitting in clouds with troubles, in simulated time; campaign.py prints the table."""

from __future__ import annotations

import pathlib
import sys

import pytest

sys.path.append(str(pathlib.Path(__file__).parent))

import campaign  # noqa: E402
import simulated_cloud  # noqa: E402


@pytest.mark.parametrize("first", range(0, 50, 10))
def test_nothing_that_costs_money_is_left_in_silence(first: int) -> None:
    outcomes = [campaign.attempt(seed) for seed in range(first, first + 10)]
    wrong = [outcome for outcome in outcomes if outcome.wrong]
    assert not wrong, campaign.table(wrong) + "\n" + wrong[0].said


@pytest.mark.slow
def test_a_thousand_more_schedules() -> None:
    wrong = [x for seed in range(50, 1050) if (x := campaign.attempt(seed)).wrong]
    assert not wrong, campaign.table(wrong) + "\n" + wrong[0].said


def outcome(monkeypatch, **settings) -> campaign.Outcome:
    monkeypatch.setattr(simulated_cloud, "world", lambda seed: simulated_cloud.World(**settings))
    return campaign.attempt(0)


def test_creations_that_always_fail_end_with_growing_pauses(monkeypatch) -> None:
    done = outcome(monkeypatch, creation_fails=1.0)
    assert (done.code, done.created, done.left) == (1, 10, ())
    # Pauses of 1, 2, 4, 8, 16, 16 ... minutes, each at least by half.
    assert done.hours > (1 + 2 + 4 + 8 + 5 * 16) / 2 / 60
    error, last = done.said.splitlines()[-2:]
    assert error.startswith("error: pod was created 10 times without a new checkpoint")
    assert last.endswith("nothing of pod is left")


def test_a_request_whose_answer_was_lost_is_waited_for(monkeypatch) -> None:
    """Interrupted half a minute after it, before the slices are there."""
    weather = simulated_cloud.World(late=1.0, signals=(0.01,))
    monkeypatch.setattr(simulated_cloud, "world", lambda seed: weather)
    outcomes = [campaign.attempt(seed) for seed in range(20)]
    assert [x.created for x in outcomes] == [1] * 20
    assert [x.left for x in outcomes] == [()] * 20


def test_slices_are_held_no_longer_than_allowed(monkeypatch) -> None:
    done = outcome(monkeypatch, max_hours=2.0)
    assert done.code == 1 and not done.left
    assert "the slices were held for 2 hours (--max_hours)" in done.said
    # The run has saved what it did in two hours, but for installing.
    assert 1.8 < done.trained < 2.0


def test_the_limit_on_hours_outlives_a_babysitter(monkeypatch) -> None:
    done = outcome(monkeypatch, max_hours=2.0, killed_at=1.5)
    assert done.code == 1 and not done.left and "taking over" in done.said
    assert 1.8 < done.trained < 2.3


def test_slices_that_are_only_said_to_be_there_are_replaced(monkeypatch) -> None:
    done = outcome(monkeypatch, preempted_after=2.5, ghost=1.0)
    assert done.code == 0 and done.created > 1
    # Without looking at hosts, each loss would go unnoticed for five hours.
    assert done.hours < simulated_cloud.RUN_HOURS + 1.2 * done.created


def test_hosts_that_hang_do_not_keep_anybody_waiting(monkeypatch) -> None:
    done = outcome(monkeypatch, ssh_hangs_for=100.0)
    assert done.code == 0 or "giving up" in done.said
    assert not done.left and done.hours < 30


def test_what_cannot_be_deleted_is_the_last_line(monkeypatch) -> None:
    done = outcome(monkeypatch, no_delete=True)
    assert (done.code, done.left) == (1, ("pod",))
    assert done.said.splitlines()[-1] == (
        "error: queued resource pod (ACTIVE), TPU VM pod (READY): costs money; delete: "
        "launch/tpu_run.sh delete --name pod --zone z"
    )
