"""SIGTERM and SIGINT end a command with status 143 or 130 and one line, wherever they come, and it resumes."""

from __future__ import annotations

import random
import shutil
import signal
import time

import pytest
from children import Child
from disk import arming, needs_faults, signaled
from jobs import AS_COMMAND, JOBS, leftovers, start
from long import MOMENTS, SEED, record

pytestmark = pytest.mark.xdist_group("children")
SIGNALS = (signal.SIGTERM, signal.SIGINT)
LINE = "stopped; run the same command again to resume"


def command(code):
    """Python code as a command that says "ready" once it can be stopped."""
    ready = "import os, signal, sys, time\nprint('ready', flush=True)\n"
    body = "".join(f"    {line}\n" for line in (ready + code).splitlines())
    return Child(
        f"import retrodistill.cli.stopping as stopping\nstopping._PATIENCE = 0.5\ndef main(_):\n{body}{AS_COMMAND}"
    )


def ended(child, number, seconds=60):
    """Wait until it is ready, send a signal, and return what it said on standard error."""
    deadline = time.monotonic() + seconds
    while not child.said():
        assert child.poll() is None, child.wait()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    child.send_signal(number)
    status, _, error = child.wait(seconds)
    assert status == 128 + number, error
    return error


def moments(count, names, seed):
    chance = random.Random(seed)
    return [(names[n % len(names)], chance.choice(SIGNALS), round(chance.random(), 3)) for n in range(count)]


def is_empty(path):
    return not any(path.iterdir()) if path.is_dir() else path.stat().st_size == 0


def check(workshop, folder, name, number, share):
    job = JOBS[name]
    workshop.fill(job, folder)
    count = len(workshop.operations(job))
    fault = signaled(min(int(share * count), count - 1), number)
    status, _, error = start(job, folder, arming(folder, fault)).wait(300)
    assert "Traceback" not in error
    assert status == 128 + number, error
    assert error.splitlines()[-1] == LINE
    record("stopped by a signal")
    kept = (".training", ".work")  # what a stopped job goes on from
    left = [path for path in leftovers(folder) if not path.endswith(kept)]
    # Nothing can remove a file or folder between the call that makes it and the next instruction; the next run does.
    assert [path for path in left if not is_empty(folder / path)] == []
    assert workshop.broken_files(job, folder, older=False) == []
    workshop.resume(job, folder)


@needs_faults
class TestJobs:
    @pytest.mark.parametrize(("name", "number", "share"), moments(2, ("mine", "index-dense"), SEED))
    def test_end_with_a_line_and_resume(self, workshop, tmp_path, name, number, share):
        check(workshop, tmp_path / "job", name, number, share)

    @pytest.mark.slow
    @pytest.mark.parametrize(("name", "number", "share"), moments(MOMENTS, tuple(JOBS), SEED + 1))
    def test_all_of_them_do(self, workshop, tmp_path, name, number, share):
        check(workshop, tmp_path / "job", name, number, share)
        shutil.rmtree(tmp_path / "job")


class TestLibraries:
    @pytest.mark.parametrize("number", SIGNALS)
    def test_one_that_does_not_return(self, number):
        child = command("import hashlib\nhashlib.pbkdf2_hmac('sha256', b'', b'', 2**31 - 1)")
        assert ended(child, number) == f"{LINE}\n"

    def test_faiss_in_the_middle_of_a_training(self):
        child = command("""
import numpy as np
from retrodistill.core.faiss import faiss
means = faiss.Kmeans(16, 256, niter=10**6)
means.train(np.random.default_rng(0).normal(size=(20_000, 16)).astype("f4"))
""")
        assert ended(child, signal.SIGTERM) == f"{LINE}\n"

    def test_torch_in_the_middle_of_many_products(self):
        child = command("import torch\nwhile True:\n    torch.ones(300, 300) @ torch.ones(300, 300)")
        assert ended(child, signal.SIGINT) == f"{LINE}\n"

    def test_a_callback_whose_errors_python_only_reports(self):
        child = command("""
class Object:
    def __del__(self):
        time.sleep(60)
one = Object()
del one
time.sleep(60)
""")
        assert ended(child, signal.SIGTERM) == f"{LINE}\n"

    def test_what_makes_another_error_of_it(self):
        child = command(
            "try:\n    time.sleep(60)\nexcept BaseException:\n    raise RuntimeError('interrupted') from None"
        )
        assert ended(child, signal.SIGINT) == f"{LINE}\n"

    def test_threads_that_wait_for_a_server(self):
        child = command("import threading\nthreading.Thread(target=time.sleep, args=(60,)).start()\ntime.sleep(60)")
        assert ended(child, signal.SIGTERM) == f"{LINE}\n"


class TestWorkers:
    def test_one_that_is_ended_does_not_end_its_parent(self):
        code = """
import multiprocessing
worker = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
worker.start()
time.sleep(0.2)
os.kill(worker.pid, signal.SIGTERM)
worker.join()
print(worker.exitcode)
time.sleep(1)
"""
        status, out, error = command(code).wait()
        assert (status, out.split(), error) == (0, ["ready", "-15"], "")

    def test_they_say_nothing_of_a_signal_to_all(self):
        code = """
import multiprocessing
os.setpgrp()
workers = [multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,)) for _ in range(2)]
[worker.start() for worker in workers]
time.sleep(0.2)
os.killpg(0, signal.SIGINT)
[worker.join() for worker in workers]
"""
        assert command(code).wait()[0::2] == (130, f"{LINE}\n")
