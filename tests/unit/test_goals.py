"""When a run has learnt enough."""

import pytest

from common.ids import RunId, sha256
from common.messages import Summary
from coordinator.goals import Goal, Progress


def summed(number, loss=None, accuracy=None, *, committed=True, **more):
    outcome = "committed" if committed else "abandoned: nobody came"
    model = sha256(f"{number}".encode()) if committed else None
    return Summary(
        run=RunId("run-1"),
        round=number,
        loss=loss,
        accuracy=accuracy,
        clients=1,
        outcome=outcome,
        model=model,
        **more,
    )


def play(goal, *losses):
    progress = Progress(goal)
    return [progress.take(summed(number, loss, 0.5)) for number, loss in enumerate(losses)]


def test_a_target_is_reached_and_not_before():
    progress = Progress(Goal(accuracy=0.9))
    assert progress.take(summed(1, 0.5, 0.899)) == ""
    assert progress.take(summed(2, 0.5, 0.9)) == "the accuracy 0.9 is reached"


def test_a_plateau_is_so_many_rounds_without_a_better_loss():
    assert play(Goal(plateau=2), 3, 2, 2, 1, 1.5, 1) == ["", "", "", "", "", WHY.format(2)]
    assert play(Goal(plateau=3), 1, 2, 3, 4)[-1] == WHY.format(3)


WHY = "the loss has not become better for {} rounds"


def test_a_round_that_came_to_nothing_or_has_no_score_says_nothing():
    progress = Progress(Goal(accuracy=0.1, plateau=1))
    assert progress.take(summed(1, 1.0, 0.05)) == ""
    assert progress.take(summed(2, committed=False)) == ""
    assert progress.take(summed(3)) == ""
    assert progress.take(summed(4, 1.0, 0.05)) == WHY.format(1)


def test_without_test_data_of_its_own_the_clients_scores_count():
    progress = Progress(Goal(accuracy=0.9))
    assert progress.take(summed(1, local_loss=0.3, local_accuracy=0.95)) == "the accuracy 0.9 is reached"
    assert Progress(Goal(accuracy=0.9)).take(summed(1, 0.5, 0.5, local_loss=0.3, local_accuracy=0.95)) == ""


@pytest.mark.parametrize("losses", [(3, 2, 1), (1, 1, 1), (1, 2, 3)])
def test_without_a_goal_nothing_is_enough(losses):
    assert not any(play(Goal(), *losses))
