"""The demo's first stage from the installed wheel: load the corpus, mine candidates, score some, fuse the scores."""

import sys
from importlib import metadata
from pathlib import Path

import retrodistill as rd

environment = Path(sys.argv[1]).resolve()
place = Path(rd.__file__).resolve()
assert environment in place.parents, f"retrodistill comes from {place}, not from the wheel"
files = {str(file).rpartition("/")[2] for file in metadata.files("retrodistill") or []}
recipes = {path.name for path in (Path(__file__).parents[1] / "configs").glob("*.yaml")}
assert {"LICENSE", "py.typed", *recipes} <= files, "the wheel lacks files"

corpus = rd.load_collection("demo")
pool = rd.mine(corpus, "auto", ["bm25"], depth=20)
some = pool.select(pool.query_ids[:10])
teachers = ["bm25", "dense:all-MiniLM-L6-v2"]
target = rd.fuse(rd.score(corpus, some, teachers), weights=[0.3, 0.7])
assert len(target) == len(some) > 0
print(f"{len(corpus.documents)} documents, {len(pool)} candidates, {len(target)} of them scored")
