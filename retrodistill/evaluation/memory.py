"""Peak memory of one system, measured in a process of its own: in this one, others have left theirs."""

from __future__ import annotations

import json
import subprocess
import sys

from retrodistill.core.progress import log


def peak_memory(system: str, collection: str, queries: list[str], threads: int) -> int | None:
    """Highest resident memory of a process that loads this system alone and answers the queries, in bytes.

    Resident memory is what the system counts: Python, libraries and native allocations of FAISS and torch included,
    which `tracemalloc` does not see.

    Args:
        system: What `load_candidate` takes, as text.
        collection: What `load_collection` takes, as text.
        queries: Answered one after the other, 100 documents each.
        threads: Of torch and FAISS.

    Returns:
        None where that process failed, or the platform does not count.
    """
    asked = {"system": system, "collection": collection, "queries": queries, "threads": threads}
    command = [sys.executable, "-m", __name__]
    done = subprocess.run(command, input=json.dumps(asked), capture_output=True, text=True, check=False)
    if done.returncode != 0 or not done.stdout.strip().isdigit():
        reason = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        log(f"{system}: its memory was not measured ({reason[:120]})")
        return None
    return int(done.stdout)


def _answer(asked: dict) -> int:
    import resource

    from retrodistill.core.progress import set_quiet
    from retrodistill.data import load_collection
    from retrodistill.evaluation.rates import fixed_threads
    from retrodistill.evaluation.systems import load_candidate

    set_quiet(True)
    collection = load_collection(asked["collection"])
    retriever = load_candidate(asked["system"], asked["system"]).retriever
    with fixed_threads(asked["threads"]):
        answer = retriever.query_fn(collection, min(100, len(collection.documents)))
        for query in asked["queries"]:
            answer(query)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS counts bytes, others kibibytes


if __name__ == "__main__":
    sys.stdout.write(f"{_answer(json.load(sys.stdin))}\n")
