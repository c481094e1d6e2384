"""Processes that export and are killed by the operating system in the middle."""

import signal
from pathlib import Path

from children import Child

HEADER = """
import os, sys
from retrodistill.exports.parquet import ParquetSettings
from retrodistill.exports.qdrant import QdrantSettings
from records_of import *

def die_after(owner, name, calls):
    # SIGKILL in place of a call, so that nothing is tidied up
    method, done = getattr(owner, name), []
    def counted(*arguments, **options):
        if len(done) == calls:
            os.kill(os.getpid(), 9)
        done.append(1)
        return method(*arguments, **options)
    setattr(owner, name, counted)
"""


def killed(code, *arguments):
    """Run Python code that ends by SIGKILL; `arguments` are its sys.argv[1:]."""
    status, _, error = Child(HEADER + code, *arguments, folders=[Path(__file__).parent]).wait()
    if status != -signal.SIGKILL:
        raise RuntimeError(f"the child was not killed ({status}): {error}")
