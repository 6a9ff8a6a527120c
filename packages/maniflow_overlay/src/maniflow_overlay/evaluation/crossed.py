"""The interval of a mean over trainings that all played the same episodes.

Values x[k, e] of training k and episode e share what is peculiar to the training and what is
peculiar to the episode, so neither rows nor columns are independent draws of one another:

    x[k, e] = mean + a[k] + b[e] + c[k, e].

With the mean squares MS_a = E var_k(mean over e) and MS_b = K var_e(mean over k), the variance of
the mean is at most (MS_a + MS_b) / (K E) in expectation, with Satterthwaite's degrees of freedom

    f = (MS_a + MS_b)^2 / (MS_a^2 / (K - 1) + MS_b^2 / (E - 1)).

This is min F' of Clark (1973, The language-as-fixed-effect fallacy, Journal of Verbal Learning and
Verbal Behavior 12): what it finds holds for other trainings and for other episodes. Student's
interval over the trainings alone takes the episodes for all there are; McNemar's test on pooled
episodes takes one training's episodes for independent of another's, which are the same ones.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from loom.evaluation.statistics import Undefined
from scipy import stats


class Crossed(NamedTuple):
    """A mean over trainings and episodes, its interval, and how likely it is if the mean is 0.

    Attributes:
        mean: Of all values.
        low: Lower end of the interval of 95 %.
        high: Upper end.
        freedom: Degrees of freedom, between K - 1 and those of all values.
        p: Two-sided, of the hypothesis that the mean is 0.
    """

    mean: float
    low: float
    high: float
    freedom: float
    p: float


def crossed_interval(values: np.ndarray, confidence: float = 0.95) -> Crossed | Undefined:
    """Return the mean of finite (trainings, episodes) with its interval, of 95 % by default."""
    table = np.asarray(values, np.float64)
    trainings, episodes = table.shape
    if min(trainings, episodes) < 2:
        return Undefined(f"{trainings} training and {episodes} episodes, an interval needs 2 each")
    of_trainings = episodes * float(table.mean(axis=1).var(ddof=1))
    of_episodes = trainings * float(table.mean(axis=0).var(ddof=1))
    mean, total = float(table.mean()), of_trainings + of_episodes
    if total == 0:
        return Undefined("all trainings and all episodes agree")
    freedom = total**2 / (of_trainings**2 / (trainings - 1) + of_episodes**2 / (episodes - 1))
    error = (total / table.size) ** 0.5
    half = float(stats.t.ppf((1 + confidence) / 2, freedom)) * error
    p = 2 * float(stats.t.sf(abs(mean) / error, freedom))
    return Crossed(mean, mean - half, mean + half, float(freedom), p)
