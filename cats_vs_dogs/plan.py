"""The plan of a training run: how many steps there are, and at which of them something is due."""

import dataclasses
import sys

from cats_vs_dogs.config import PeriodsConfig


@dataclasses.dataclass(frozen=True)
class Plan:
    """How many steps a run has, and how many examples they take. The last step of an epoch may take fewer.

    Attributes:
        num_examples: examples per epoch.
        batch_size: examples per step, over all devices.
        periods: when training ends, and what is due how often.
        evaluates: whether the model is evaluated after each epoch.
    """

    num_examples: int
    batch_size: int
    periods: PeriodsConfig
    evaluates: bool = False

    @property
    def steps_per_epoch(self) -> int:
        """Steps per epoch; the last one may be smaller."""
        return -(-self.num_examples // self.batch_size)

    @property
    def total_steps(self) -> int:
        """The step to stop at."""
        return min(self.periods.num_epochs * self.steps_per_epoch, self.periods.max_steps or sys.maxsize)

    @property
    def last_step_flag(self) -> str:
        """The flag that sets the last step."""
        ends_early = self.total_steps < self.periods.num_epochs * self.steps_per_epoch
        return "--max_steps" if ends_early else "--num_epochs"

    def examples_at(self, step: int) -> int:
        """Returns how many examples have been seen after `step` steps."""
        epochs, steps = divmod(step, self.steps_per_epoch)
        return epochs * self.num_examples + min(steps * self.batch_size, self.num_examples)

    def epoch_of(self, step: int) -> int:
        """Returns the epoch of a step. Both count from 1."""
        return -(-step // self.steps_per_epoch)

    def epochs_left(self, step: int) -> float:
        """Returns how many epochs remain after `step` steps."""
        return (self.total_steps - step) / self.steps_per_epoch

    # ---- What is due after a step.

    def log_is_due(self, step: int) -> bool:
        """Whether a step is logged."""
        return _is_due(step, self.periods.log_steps) or step == self.total_steps

    def is_first_logged(self, step: int) -> bool:
        """Whether a step is the first one that is logged, also by a run that resumes before it."""
        return self.log_is_due(step) and step <= self.periods.log_steps

    def evaluation_is_due(self, step: int) -> bool:
        """Whether the model is evaluated after a step, because an epoch or training ends."""
        return self.evaluates and (_is_due(step, self.steps_per_epoch) or step >= self.total_steps)

    def export_is_due(self, step: int) -> bool:
        """Whether the model is exported after a step, before the end of training."""
        return _is_due(step, self.periods.export_model_steps)

    def steps_until_due(self, step: int) -> int:
        """Returns how many steps there are from `step` to the next one after which something is due."""
        periods = [self.periods.log_steps, self.periods.export_model_steps]
        periods += [self.steps_per_epoch] if self.evaluates else []
        due = [step + period - step % period for period in periods if period]
        return min(after for after in (self.total_steps, *due, *self.periods.profile_steps) if after > step) - step

    def __str__(self) -> str:
        epochs = self.examples_at(self.total_steps) / self.num_examples
        return (
            f"{self.num_examples:,} examples, {self.total_steps:,} steps = {epochs:.4g} epochs of "
            f"{self.steps_per_epoch:,} steps."
        )


def _is_due(step: int, period: int) -> bool:
    return period > 0 and step % period == 0
