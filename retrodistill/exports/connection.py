"""Reaching Qdrant, embedded in a folder, on a server or in a cluster; whatever goes wrong is said in one line."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError  # what an embedded Qdrant's own files raise
from typing import TYPE_CHECKING, Any

from retrodistill.core.errors import UserError
from retrodistill.core.files import check_replaceable

if TYPE_CHECKING:
    from qdrant_client import QdrantClient

_EMBEDDED = "meta.json"  # what an embedded Qdrant keeps in its folder
_KEY = "QDRANT_API_KEY"
_TIMEOUT = 60  # seconds; Qdrant's own 5 are few for a batch of token vectors


def library() -> Any:
    """The package `qdrant_client`.

    Raises:
        UserError: It is not installed.
    """
    try:
        import qdrant_client
    except ImportError as error:
        raise UserError(
            "Qdrant needs the package qdrant-client, which is not installed; 'pip install retrodistill[qdrant]'."
        ) from error
    return qdrant_client


@dataclass(frozen=True)
class Address:
    """Where a collection is.

    Attributes:
        place: A folder, or the URL of a server.
        name: Name of the collection; None for the only one there.
    """

    place: str
    name: str | None = None

    @classmethod
    def parse(cls, text: str) -> Address:
        """Read ``qdrant:PLACE#NAME``; ``qdrant:`` may be left out, and ``#NAME`` where there is one collection.

        Raises:
            UserError: No place in it.
        """
        place, _, name = str(text).removeprefix("qdrant:").partition("#")
        if not place:
            raise UserError(f"{text!r} names no place; write 'qdrant:FOLDER#NAME' or 'qdrant:http://HOST:6333#NAME'.")
        return cls(place, name or None)

    def __str__(self) -> str:
        return f"qdrant:{self.place}" + (f"#{self.name}" if self.name else "")

    @property
    def is_server(self) -> bool:
        """Whether it is a URL."""
        return self.place.startswith(("http://", "https://"))


@contextlib.contextmanager
def connected(place: str | os.PathLike[str] | QdrantClient, *, create: bool = False) -> Iterator[QdrantClient]:
    """A client of a folder or server for a ``with`` statement; a client object is used as it is and stays open.

    Args:
        place: A folder, a URL (the key of its server is in the environment as QDRANT_API_KEY) or a client.
        create: Whether a folder may be new.

    Raises:
        UserError: The package or the folder is missing, the folder holds something else or is in use, or no server.
    """
    if not isinstance(place, (str, os.PathLike)):
        yield place
        return
    client = connect(str(place), create=create)
    try:
        yield client
    finally:
        client.close()


def connect(place: str, *, create: bool = False) -> QdrantClient:
    """A client of a folder or server, to be closed; arguments and errors as `connected`.

    An embedded folder is read with pickle by qdrant-client: open only those that you trust.
    """
    qdrant = library()
    if Address(place).is_server:
        with telling(place):
            client = qdrant.QdrantClient(
                url=place, api_key=os.environ.get(_KEY) or None, timeout=_TIMEOUT, check_compatibility=False
            )
            client.get_collections()  # nothing was asked yet: whether it is there and lets us in
        return client
    if create:
        check_replaceable(place, _EMBEDDED)
    elif not (Path(place) / _EMBEDDED).is_file():
        raise UserError(f"no Qdrant folder {place} (no {_EMBEDDED} in it); a server is given as http://HOST:6333.")
    with telling(place):
        return qdrant.QdrantClient(path=place)


def is_embedded(client: QdrantClient) -> bool:
    """Whether the client itself keeps the points: it searches exactly and ignores indexing, quantization and shards."""
    options = client.init_options
    return options["path"] is not None or options["location"] == ":memory:"


@contextlib.contextmanager
def telling(where: object) -> Iterator[None]:
    """Turn what the client raises into one line.

    Raises:
        UserError: No answer, no admission, a folder in use or damaged, or a request that Qdrant refuses.
    """
    exceptions = library().http.exceptions
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="(?s).*(Local mode|Api key is used|Payload indexes)")
            yield
    except exceptions.ResponseHandlingException as error:
        raise UserError(
            f"Qdrant at {where} does not answer ({_line(error)}); is it running, and is this its URL?"
        ) from error
    except exceptions.UnexpectedResponse as error:
        if error.status_code in (401, 403):
            raise UserError(f"Qdrant at {where} refuses the key; set the environment variable {_KEY}.") from error
        raise UserError(f"Qdrant at {where} refuses: {_line(error)}.") from error
    except (sqlite3.DatabaseError, UnpicklingError, EOFError) as error:
        raise UserError(f"Qdrant's folder {where} is cut short or altered ({_line(error)}); export again.") from error
    except (RuntimeError, ValueError, OSError) as error:
        if "already accessed" in str(error):
            raise UserError(
                f"Qdrant's folder {where} is in use by another process; wait for it or close it."
            ) from error
        raise UserError(f"Qdrant at {where} refuses: {_line(error)}.") from error


def _line(error: Exception) -> str:
    said = (str(error).strip() or type(error).__name__).splitlines()
    return " ".join(line.strip() for line in said if line.strip())[:200]
