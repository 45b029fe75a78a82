"""The prior: a power law of how long obstacles last, and the square-root rule that follows from it."""

import functools
import itertools
import math

from app.retry.ages import EDGES
from app.retry.causes import Cause, Scope
from app.retry.costs import Costs

ALPHA = 0.7
"""Of the hazard ALPHA/(t + t₀): what has lasted for t lasts for another t with probability 2^-ALPHA = 0.62."""

SCALE_SECONDS = {Scope.BACKEND: 10.0, Scope.MESSAGE: 60.0}
SCALE_SOON_SECONDS = 0.25
"""t₀ of one message's failure that refused nothing."""

AT_ONCE = 0.02
"""H of the first bucket for one message's refusal, beside the power law's: some are an accident of that one attempt. So
few are not acted on; but a few looks at once that come through are believed."""


def scale(scope: Scope, cause: Cause) -> float:
    """t₀ in seconds."""
    return SCALE_SOON_SECONDS if scope is Scope.MESSAGE and cause.soon else SCALE_SECONDS[scope]


def cumulated_hazard(age: float, t0: float) -> float:
    """∫ ALPHA/(t + t₀) dt from 0 to ``age``. The survival is exp(-this): a Lomax distribution."""
    return ALPHA * math.log1p(max(0.0, age) / t0)


@functools.cache
def power_law(t0: float) -> tuple[float, ...]:
    """The cumulated hazard between the edges of each bucket."""
    cumulated = [cumulated_hazard(edge, t0) for edge in EDGES]
    return tuple(later - earlier for earlier, later in itertools.pairwise(cumulated))


def hazards(scope: Scope, cause: Cause) -> tuple[float, ...]:
    """H⁰ of each bucket."""
    first, *later = power_law(scale(scope, cause))
    return (first + (AT_ONCE if scope is Scope.MESSAGE and not cause.soon else 0.0), *later)


def square_root_wait(age: float, t0: float, waiting: int, costs: Costs, *, copies: bool = False) -> float:
    """Seconds until the next attempt where no table is at hand: d = sqrt(2 c / (w β h)), h the hazard at ``age``.

    Attempts d seconds apart cost c/d each second, and what ends between two of them, h each second, waits d/2 too long.
    The least sum is at this d (J. B. Keller, "Optimum checking schedules for systems subject to random failure",
    Management Science 21, 1974; R. Barlow, L. Hunter, F. Proschan, "Optimum checking procedures", SIAM J. 11, 1963).
    """
    hazard = ALPHA / (max(0.0, age) + t0)
    return math.sqrt(2 * costs.of_attempt(copies=copies) / (max(1, waiting) * costs.beta * hazard))
