"""Stores, indexes and encoders that were opened and used before a fork serve the child."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from children import Child

SAVED = Path(__file__).parents[1] / "fixtures" / "saved_at_0.1.0"
pytestmark = pytest.mark.xdist_group("children")

# OpenMP's threads exist only in the parent; a pool of them is made by the first parallel call.
USE = """
import multiprocessing, os, sys
os.environ["OMP_NUM_THREADS"] = "2"
import numpy as np
import torch
torch.set_num_threads(2)
from retrodistill.core.faiss import faiss
faiss.omp_set_num_threads(2)
from retrodistill.data import load_collection
from retrodistill.encoders import load_encoder
from retrodistill.encoders.embeddings import store_of
from retrodistill.indexes import build_index, load_index
from retrodistill.rankers import load_ranker
from retrodistill.students import load_student

saved, out = sys.argv[1:3]

def opened():
    collection = load_collection(saved + "/collection")
    encoder = load_encoder(f"dense:{saved}/hybrid")
    store = store_of(encoder, "document")
    store.fill(collection.documents.texts)
    indexes = []
    for name in ("hybrid", "sparse", "multi-vector"):
        student = load_student(f"{saved}/{name}")
        if not os.path.exists(f"{out}/{name}"):
            build_index(collection, student).save(f"{out}/{name}")
        indexes += [load_index(f"{out}/{name}", student, memory_map=mapped) for mapped in (False, True)]
    return collection, encoder, store, indexes, load_ranker("bm25")

def use(parts):
    collection, encoder, store, indexes, bm25 = parts
    found = [index.search(collection.queries, k=5).to_dict() for index in indexes]
    found.append(bm25.search(collection.queries, collection, 5).to_dict())
    torch.softmax(torch.ones(2000, 2000), 1)  # large enough for the threads of each library
    wide = faiss.IndexFlatIP(64)
    wide.add(np.ones((20000, 64), dtype=np.float32))
    wide.search(np.ones((200, 64), dtype=np.float32), 3)
    texts = [f"{text} {place}" for place, text in enumerate(collection.documents.texts)]
    store.fill(texts)
    return found, encoder.encode(["heart artery"], "query").tolist(), store.gather(texts).round(5).tolist()

def work(pipe):
    pipe.send(use(parts))
    pipe.close()

def again(pipe):
    pipe.send(use(opened()))
    pipe.close()
"""
FORK = """
parts = opened()
expected = use(parts)
context = multiprocessing.get_context("fork")
pipes = [context.Pipe(duplex=False) for _ in range(3)]
children = [context.Process(target=work, args=(pipe[1],)) for pipe in pipes]
for child in children:
    child.start()
for child, (pipe, _) in zip(children, pipes):
    if not pipe.poll(90):
        for each in children:
            each.kill()
        raise SystemExit("a child hangs")
    found = pipe.recv()
    child.join(30)
    assert found == expected
assert use(parts) == expected
print("equal")
"""
START = """
if __name__ == "__main__":
    parts = opened()
    expected = use(parts)
    context = multiprocessing.get_context(sys.argv[3])
    pipe, other = context.Pipe(duplex=False)
    child = context.Process(target=again, args=(other,))
    child.start()
    if not pipe.poll(90):
        child.kill()
        raise SystemExit("the child hangs")
    assert pipe.recv() == expected
    child.join(30)
    print("equal")
"""


def ended(child):
    status, out, error = child.wait(200)
    assert (status, out) == (0, "equal\n"), f"exit status {status}\n{out}\n{error}"


@pytest.mark.slow
def test_children_of_a_fork_use_what_their_parent_opened(tmp_path):
    ended(Child(USE + FORK, SAVED, tmp_path, environment={"RETRODISTILL_CACHE": str(tmp_path / "cache")}))


@pytest.mark.slow
@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_children_of_other_methods_open_the_same(method, tmp_path):
    file = tmp_path / "program.py"  # these methods import the main module
    file.write_text(USE + START)
    own = {"RETRODISTILL_CACHE": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(SAVED.parents[2])}
    command = [sys.executable, str(file), str(SAVED), str(tmp_path), method]
    run = subprocess.run(command, env={**os.environ, **own}, capture_output=True, text=True, timeout=240, check=False)
    assert (run.returncode, run.stdout) == (0, "equal\n"), run.stderr
