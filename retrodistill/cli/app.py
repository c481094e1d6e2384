"""The application, and what its commands share: options and printing."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@app.callback(no_args_is_help=True)
def encoding(
    context: typer.Context,
    batch_size: Annotated[
        int | None, typer.Option(help="Texts or pairs per forward pass of models that are not trained; 32 by default.")
    ] = None,
    precision: Annotated[
        str | None, typer.Option(help="Of their matrix products: float32 (the default) or bfloat16.")
    ] = None,
) -> None:
    """Distill strong, slow rankers into small, fast retrievers, and prove on BEIR what was kept."""
    changes = {"batch_size": batch_size, "precision": precision}
    context.obj = {key: value for key, value in changes.items() if value is not None}  # `run` puts them into its recipe
    if context.obj:
        from retrodistill.encoders.contract import EncodingSettings, encode_with
        from retrodistill.recipes.loading import validated

        context.with_resource(encode_with(validated(EncodingSettings, context.obj, "options")))


CollectionOption = Annotated[str, typer.Option(help="BEIR folder, beir/NAME, ir_datasets:ID, hf:NAME, or demo.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object for programs, and no progress.")]
OutOption = Annotated[Path, typer.Option(help="Folder for what is made.")]
RunOption = Annotated[Path, typer.Option(help="Run file: .run, .trec, .parquet or .jsonl.")]
StoreOption = Annotated[
    Path | None, typer.Option(help="Folder for scores and embeddings; the shared cache by default.")
]
DryOption = Annotated[bool, typer.Option("--dry-run", help="Say what is left to do and how long it takes; do nothing.")]


def show(line: str) -> None:
    """Print a result line."""
    sys.stdout.write(f"{line}\n")


def duration(seconds: float) -> str:
    """Seconds for people: s, min or h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
