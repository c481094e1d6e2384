"""Processes that export and are killed by the operating system in the middle."""

import os
import signal
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
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
    paths = os.pathsep.join([str(ROOT), str(Path(__file__).parent)])
    done = subprocess.run(
        [sys.executable, "-c", HEADER + code, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != -signal.SIGKILL:
        raise RuntimeError(f"the child was not killed ({done.returncode}): {done.stderr}")
