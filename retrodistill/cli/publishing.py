"""The command that uploads to the Hugging Face hub: push."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from retrodistill.cli.app import JsonOption, app, show, show_json, typed, with_trust
from retrodistill.core.runtime import set_quiet


@app.command()
@with_trust
def push(  # noqa: PLR0913, PLR0917 - one option each
    folder: Annotated[Path, Argument(help="Folder of a student, an index, or a job.")],
    repository: Annotated[str, Argument(metavar="USER/NAME", help="Repository; made if it does not exist.")],
    student: Annotated[str | None, Option(help="Of a job: the student, unless there is only one.")] = None,
    queries: Annotated[
        str | None, Option(help="Of an index: its query encoder on the hub, e.g. dense:USER/STUDENT.")
    ] = None,
    license: Annotated[
        str | None, Option(help="License, e.g. apache-2.0; by default that of the card, or of the base model.")
    ] = None,
    private: Annotated[bool, Option("--private", help="Make the repository private.")] = False,
    message: Annotated[str | None, Option(help="Message of the commit.")] = None,
    dry_run: Annotated[bool, Option("--dry-run", help="Only check, and print what would be uploaded.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Upload a student or an index to the Hugging Face hub, with a model card. Run it again if it was interrupted.

    Log in with 'hf auth login', or set HF_TOKEN. A student is then dense:USER/NAME (or another kind), an index
    hf:USER/NAME, wherever a model or an index is named.
    """
    from retrodistill.publishing import push_to_hub
    from retrodistill.report.text import memory

    set_quiet(as_json)
    published = push_to_hub(
        folder,
        repository,
        student=student,
        queries=queries,
        license=license,
        private=private,
        message=None if message is None else typed(message),
        dry_run=dry_run,
    )
    if as_json:
        show_json(published.to_json())
        return
    for name, size in published.files.items():
        show(f"{memory(size):>12}  {name}")
    done = "would be uploaded" if published.url is None else "uploaded"
    show(f"{len(published.files)} files of a {published.kind}, {memory(sum(published.files.values()))}, {done}")
    if published.url is not None:
        show(published.url)
