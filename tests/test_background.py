"""Jobs beside training: in order, errors surface, nothing hangs."""

import threading

import pytest

from jaxqmix.background import WAITING, Background


def test_jobs_run_in_order_and_are_waited_for():
    done, background = [], Background()
    for number in range(3 * WAITING):
        background.submit(done.append, number)
    background.wait()
    assert done == list(range(3 * WAITING))
    background.close()


def test_a_failure_surfaces_and_drops_what_follows():
    def fail():
        raise OSError(28, "No space left on device")

    done, background, go = [], Background(), threading.Event()
    background.submit(go.wait)
    background.submit(fail)
    background.submit(done.append, 1)
    go.set()
    with pytest.raises(OSError, match="No space left"):
        background.wait()
    background.close()
    assert done == []
