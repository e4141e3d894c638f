"""Times of several implementations, measured in turn so that what disturbs the machine disturbs all of them."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import itertools
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch

TURN = 0.004  # seconds of one implementation in one round
FEWEST_ROUNDS = 7
MOST_ROUNDS = 101


@dataclasses.dataclass(frozen=True)
class Summary:
    """A median, and the quartiles around it."""

    median: float
    low: float
    high: float

    @property
    def spread(self) -> float:
        """The distance of the quartiles as a fraction of the median."""
        return (self.high - self.low) / self.median


def summary(values: Sequence[float]) -> Summary:
    """Of at least one value."""
    if len(values) == 1:
        return Summary(values[0], values[0], values[0])
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return Summary(median, low, high)


def ratio(slower: Sequence[float], faster: Sequence[float]) -> Summary:
    """How many times faster the second is: the median over rounds of the ratio within a round.

    A disturbance that lasts longer than a round cancels in it; in a ratio of two medians it does not.
    """
    return summary([a / b for a, b in zip(slower, faster)])


def synchronizer(device: torch.device) -> Callable[[], None]:
    """Waits for what was launched on a device."""
    return (lambda: None) if device.type == "cpu" else torch.get_device_module(device).synchronize


def interleave(
    runs: Mapping[str, Callable[[], object]], seconds: float, synchronize: Callable[[], None]
) -> dict[str, list[float]]:
    """Seconds per call of each implementation, one number per round.

    In a round each has its turn, in an order that rotates. A turn is one call that is not timed, because it finds the
    caches full of what another one left, and then as many as last `TURN`, one at least. Rounds are added until
    `seconds` have passed, `FEWEST_ROUNDS` of them at least.
    """
    with _undisturbed():
        counts = {name: _calls_per_turn(run, synchronize) for name, run in runs.items()}
        times: dict[str, list[float]] = {name: [] for name in runs}
        order = list(runs)
        end = time.perf_counter() + seconds
        for done in range(MOST_ROUNDS):
            if done >= FEWEST_ROUNDS and time.perf_counter() > end:
                break
            for name in order:
                runs[name]()
                times[name].append(_time(runs[name], counts[name], synchronize))
            order.append(order.pop(0))
    return times


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _time(run: Callable[[], object], calls: int, synchronize: Callable[[], None]) -> float:
    synchronize()
    start = time.perf_counter()
    for _ in itertools.repeat(None, calls):
        run()
    synchronize()
    return (time.perf_counter() - start) / calls


def _calls_per_turn(run: Callable[[], object], synchronize: Callable[[], None]) -> int:
    """Also warms up: the first call is not timed, and short ones are repeated until they last."""
    run()
    calls = 1
    while (last := _time(run, calls, synchronize) * calls) < TURN / 4:
        calls = max(2 * calls, round(calls * TURN / 2 / max(last, 1e-7)))
    return max(1, round(calls * TURN / last))
