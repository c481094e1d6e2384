import tempfile
from pathlib import Path

import pytest
from postgres_server import running


@pytest.fixture(scope="session")
def postgres():
    """The address of a PostgreSQL server; tests that use it belong to the xdist group "postgres"."""
    # The path of a socket must be short, and the server's user, who is another one than root, must get there.
    with tempfile.TemporaryDirectory(prefix="pg-", ignore_cleanup_errors=True) as folder:
        Path(folder).chmod(0o755)
        with running(Path(folder) / "data") as uri:
            yield uri
