"""One process's metrics, their course over the day, and the page that shows both."""

from __future__ import annotations

import asyncio
import time
from typing import Final

from freeapi.metrics import Metrics
from freeapi.pages.course import Course, Pulse
from freeapi.pages.gauges import watch_process
from freeapi.pages.operator import OperatorPages
from freeapi.policy import failures
from freeapi.policy.failures import Failure
from freeapi.policy.models import PATHS

#: What is counted under a name of its own, beside the API's endpoints.
_COUNTED: Final = [*PATHS, "models", "page", "status", "health"]
_FAILURE_LABELS: Final = [one.label for one in vars(failures).values() if isinstance(one, Failure)]


class Instruments:
    """Begin to measure when made; ``close`` ends it."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.metrics = Metrics(_COUNTED, _FAILURE_LABELS)
        self._course = Course(self.metrics.collect)
        self._pulse = Pulse(loop, time.time, self._course.take)
        self.operator = OperatorPages(self.metrics.collect, self._course, time.time)
        watch_process(self.metrics)
        self.metrics.watch("freeapi_event_loop_lag_seconds", lambda: self._pulse.lag_s)

    def close(self) -> None:
        """Measure no more."""
        self._pulse.close()
