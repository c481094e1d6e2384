"""The command that serves: serve."""

from __future__ import annotations

from typing import Annotated

from typer import Argument, Option

from retrodistill.cli.app import app, show, with_trust


@app.command()
@with_trust
def serve(  # noqa: PLR0913, PLR0917 - one option each
    place: Annotated[
        list[str],
        Argument(
            metavar="PLACE",
            help="The folder of a job, of an index, or of a student, or a store (qdrant:FOLDER#NAME); with "
            "--collection also what evaluate takes. Several are served side by side.",
        ),
    ],
    collection: Annotated[
        str | None, Option(help="Show texts and test queries of this collection; a job knows its own.")
    ] = None,
    queries: Annotated[str | None, Option(help="Another query encoder for indexes, of their space.")] = None,
    judgments: Annotated[
        str | None, Option(help="Folder to which judgments are appended; by default PLACE/judgments of a job.")
    ] = None,
    host: Annotated[str, Option(help="Address to bind; 0.0.0.0 for all of this machine.")] = "127.0.0.1",
    port: Annotated[int, Option(help="Port to bind; 0 for a free one.", min=0, max=65535)] = 8000,
    batch: Annotated[int, Option(help="Requests of a system that are computed together.", min=1)] = 32,
    waiting: Annotated[int, Option(help="Requests that wait for a system; more are refused.", min=1)] = 256,
    seconds: Annotated[float, Option(help="Time limit of a request.", min=0.1)] = 10.0,
    body: Annotated[int, Option(help="Bytes of a request.", min=1024)] = 1 << 20,
) -> None:
    """Serve a job, an index, or a student: a page that compares two systems, and a JSON API.

    With RETRODISTILL_TOKEN set, requests need it as their bearer token, and POST /reload opens everything anew.
    """
    from retrodistill.serving.server import serve as run

    limits = {"batch": batch, "waiting": waiting, "seconds": seconds, "body": body}
    run(
        place,
        collection=collection,
        queries=queries,
        judgments=judgments,
        host=host,
        port=port,
        limits=limits,
        ready=show_now,
    )


def show_now(line: str) -> None:
    """Print a line that a program may wait for."""
    import sys

    show(line)
    sys.stdout.flush()
