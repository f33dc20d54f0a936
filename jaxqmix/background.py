"""Work beside training: files are written while the devices compute."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

WAITING = 8
"""Jobs that may wait. A slow disk then slows training down, instead of filling the memory."""


class Background:
    """Runs jobs one after the other in a thread; what a job raises, the next call raises."""

    def __init__(self):
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="jaxqmix-writer")
        self._jobs: list[Future] = []
        self._failed = False

    def submit(self, job: Callable[..., Any], *arguments: Any) -> None:
        """Adds a job; waits while too many are waiting. Raises what an earlier job raised."""
        self._collect(WAITING - 1)
        self._jobs.append(self._thread.submit(self._run, job, arguments))

    def wait(self) -> None:
        """Waits for all jobs. Raises what one of them raised."""
        self._collect(0)

    def close(self) -> None:
        """Waits for all jobs and ends the thread. Raises what one of them raised."""
        try:
            self.wait()
        finally:
            self._thread.shutdown(cancel_futures=True)

    def _run(self, job: Callable[..., Any], arguments: tuple) -> None:
        if self._failed:  # Its order would be wrong: the jobs after a failure are dropped.
            return
        try:
            job(*arguments)
        except BaseException:
            self._failed = True
            raise

    def _collect(self, left: int) -> None:
        """Takes the results of what is done, and waits until so few jobs are left."""
        while self._jobs and (len(self._jobs) > left or self._jobs[0].done()):
            self._jobs.pop(0).result()
