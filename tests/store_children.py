"""Processes that fill a store slowly and log what they compute, for tests that kill them."""

import os
import signal
import textwrap
import time
import zlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from children import Child

from retrodistill.core.engines import Computation
from retrodistill.core.stores import text_keys
from retrodistill.encoders.contract import EncodingSettings
from retrodistill.encoders.embeddings import EmbeddingStore

ROOT = Path(__file__).parents[1]
PAIRS = [(f"query {number % 7}", f"document {number}") for number in range(300)]
TEXTS = [f"text {number} {'word ' * (number % 5)}" for number in range(300)]
PART = 16


def fake_score(pair):
    return np.float32(zlib.crc32("|".join(pair).encode()) / 2**32)


def fake_vector(text):
    return np.random.default_rng(zlib.crc32(text.encode())).normal(size=8).astype(np.float32)


class Log:
    """A file with one line per computed thing; it lives on when its process is killed."""

    def __init__(self, path):
        self.path = path

    def add(self, thing):
        with self.path.open("a") as file:
            file.write(f"{thing}\n")

    def counts(self):
        return Counter(self.path.read_text().splitlines()) if self.path.exists() else Counter()


class LoggedScorer:
    def __init__(self, log, delay=0.0):
        self.log, self.delay = Log(Path(log)), delay

    def __call__(self, pairs):
        for pair in pairs:
            self.log.add("|".join(pair))
            time.sleep(self.delay)
        return np.array([fake_score(pair) for pair in pairs])


class LoggedEncoder:
    """What the embedding store needs of an encoder."""

    name, kind, dimension = "dense:fake", "dense", 8
    encoding = EncodingSettings()
    loaded_from = part = None
    threads, has_weights = 1, True
    members = ()

    def __init__(self, log, delay=0.0, version="1"):
        self.log, self.delay, self.version = Log(Path(log)), delay, version

    def fingerprint(self, role):
        return f"{role}{self.version}"

    def contract(self, role):
        return {"role": role, "version": self.version}

    def needs_store(self, role):
        return True

    def encode(self, texts, role, *, batch_size=None):
        for text in texts:
            self.log.add(text)
            time.sleep(self.delay)
        return np.stack([fake_vector(text) for text in texts])


def start(code, *arguments):
    """A process that runs `code`, with the names of this module, and `arguments` as sys.argv[1:]."""
    header = "import sys\nfrom pathlib import Path\nfrom store_children import *\n"
    return Child(header + textwrap.dedent(code), *arguments)


def kill_after(process, log, things):
    """SIGKILL once so many things were computed; returns how many were."""
    deadline = time.monotonic() + 60
    while sum(log.counts().values()) < things:
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            raise RuntimeError(f"the child ended early: {process.wait()[2]}")
        time.sleep(0.01)
    process.kill()
    process.wait()
    return sum(log.counts().values())


@dataclass(frozen=True)
class FakeTask:
    """What a worker opens to compute fake vectors; it logs each text and can die."""

    log: str
    delay: float = 0.0
    dies_at: str = ""  # kills the process that computes this text
    marker: str = ""  # a file that is made before that, after which nothing dies

    def open(self):
        encoder = LoggedEncoder(self.log, self.delay)

        def encode(texts):
            if self.dies_at in texts and not (self.marker and Path(self.marker).exists()):
                if self.marker:
                    Path(self.marker).touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return encoder.encode(texts, "document")

        return encode


class SentStore(EmbeddingStore):
    """A store of fake vectors that are computed by a task."""

    def __init__(self, task, root):
        self.task = task
        super().__init__(LoggedEncoder(f"{task.log}-here"), "document", root)

    def fill(self, texts):
        computation = Computation(self.task.open(), self.task)
        self._fill(text_keys(texts), np.array(list(map(len, texts))), texts.__getitem__, computation, "embedding")
