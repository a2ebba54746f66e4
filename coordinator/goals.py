"""Has a run learnt enough? Pure.

    target accuracy reached, or no better loss for so many rounds -> why the run may end

Scores are the coordinator's own; where it has no test data, the clients' own of the model that a round started from.
"""

from dataclasses import dataclass

from common.messages import Summary


@dataclass(frozen=True, slots=True)
class Goal:
    """What is enough; nothing: all rounds are run."""

    accuracy: float | None = None  # from 0 to 1
    plateau: int | None = None  # rounds without a better loss


@dataclass(slots=True)
class Progress:
    """What the rounds of a run have reached so far."""

    goal: Goal
    best: float | None = None  # loss
    since: int = 0  # rounds that have scored and were not better

    def take(self, round_: Summary) -> str:
        """Take a round in; says why that is enough, or nothing."""
        if round_.model is None:  # it came to nothing
            return ""
        central = round_.loss is not None
        loss, accuracy = (
            (round_.loss, round_.accuracy) if central else (round_.local_loss, round_.local_accuracy)
        )
        if loss is not None:
            better = self.best is None or loss < self.best
            self.best, self.since = (loss, 0) if better else (self.best, self.since + 1)
        if self.goal.accuracy is not None and accuracy is not None and accuracy >= self.goal.accuracy:
            return f"the accuracy {self.goal.accuracy:g} is reached"
        if self.goal.plateau is not None and self.since >= self.goal.plateau:
            return f"the loss has not become better for {self.since} rounds"
        return ""
