import threading
from concurrent.futures import CancelledError

import pytest

from retrodistill.serving.batching import QueueFullError, Worker


class Gate:
    """Answers batches while it is open, and keeps them."""

    def __init__(self):
        self.open, self.entered, self.batches = threading.Event(), threading.Event(), []

    def __call__(self, items):
        self.batches.append(items)
        self.entered.set()
        assert self.open.wait(20)
        return [ValueError("odd") if item % 2 else 10 * item for item in items]


@pytest.fixture
def gate():
    gate = Gate()
    yield gate
    gate.open.set()


class TestBatches:
    def test_what_waits_is_answered_together_and_in_order(self, gate):
        worker = Worker(gate, "w", most=3)
        first = worker.submit(0)
        assert gate.entered.wait(20)
        others = [worker.submit(number) for number in (2, 4, 6, 8)]
        gate.open.set()
        assert [future.result(20) for future in (first, *others)] == [0, 20, 40, 60, 80]
        assert gate.batches == [[0], [2, 4, 6], [8]]
        worker.close()

    def test_a_failure_is_that_item_s_alone(self, gate):
        gate.open.set()
        worker = Worker(gate, "w")
        bad, good = worker.submit(1), worker.submit(2)
        assert good.result(20) == 20
        with pytest.raises(ValueError, match="odd"):
            bad.result(20)
        worker.close()

    def test_the_thread_outlives_an_answer_that_raises(self):
        worker = Worker(lambda items: 1 / items[0] and items, "w")
        with pytest.raises(ZeroDivisionError):
            worker.submit(0).result(20)
        assert worker.submit(1).result(20) == 1
        worker.close()

    def test_a_full_queue_is_refused(self, gate):
        worker = Worker(gate, "w", most=1, waiting=2)
        worker.submit(0)
        assert gate.entered.wait(20)
        kept = [worker.submit(2), worker.submit(4)]
        with pytest.raises(QueueFullError):
            worker.submit(6)
        gate.open.set()
        assert [future.result(20) for future in kept] == [20, 40]
        worker.close()

    def test_what_was_cancelled_is_not_computed(self, gate):
        worker = Worker(gate, "w")
        worker.submit(0)
        assert gate.entered.wait(20)
        gone, kept = worker.submit(2), worker.submit(4)
        assert gone.cancel()
        gate.open.set()
        assert kept.result(20) == 40
        assert gate.batches[1:] == [[4]]
        with pytest.raises(CancelledError):
            gone.result(20)
        worker.close()

    def test_closing_answers_what_waits_and_refuses_more(self, gate):
        worker = Worker(gate, "w")
        futures = [worker.submit(number) for number in (0, 2, 4)]
        gate.open.set()
        worker.close()
        assert [future.result(0) for future in futures] == [0, 20, 40]
        with pytest.raises(QueueFullError):
            worker.submit(6)

    def test_workers_that_share_a_lock_take_turns(self, gate):
        lock, others = threading.Lock(), []
        first = Worker(gate, "first", locks=[lock])
        second = Worker(lambda items: others.append(gate.open.is_set()) or items, "second", locks=[lock])
        first.submit(0)
        assert gate.entered.wait(20)
        waiting = second.submit(1)
        assert not others
        gate.open.set()
        assert waiting.result(20) == 1
        assert others == [True]
        first.close()
        second.close()
