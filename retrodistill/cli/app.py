"""The application, and what its commands share: options and printing."""

from __future__ import annotations

import contextlib
import functools
import inspect
import os
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Annotated, Any

from typer import Context, Option, Typer

from retrodistill.core.json_files import json_text
from retrodistill.core.runtime import log

app = Typer(no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.callback(no_args_is_help=True)
def options(
    context: Context,
    batch_size: Annotated[
        int | None, Option(help="Texts or pairs per forward pass, except in training; by default, by their tokens.")
    ] = None,
    precision: Annotated[
        str | None,
        Option(help="Precision of matrix products, except in training: float32, bfloat16, or auto (the default)."),
    ] = None,
    runtime: Annotated[
        str | None, Option(help="What runs models: torch, onnx, or auto (the default): onnx where it was exported.")
    ] = None,
    store_precision: Annotated[
        str | None, Option(help="Precision of dense vectors in stores: float32 (the default), or float16.")
    ] = None,
    max_cost: Annotated[
        float | None, Option(help="Dollars to spend on models behind an API, by the prices in their settings.", min=0)
    ] = None,
    max_requests: Annotated[int | None, Option(help="Requests to send to models behind an API.", min=0)] = None,
) -> None:
    """Distill strong, slow rankers into small, fast retrievers, and measure on BEIR how much quality is kept."""
    encoding = _given(batch_size=batch_size, precision=precision, runtime=runtime, store_precision=store_precision)
    spending = _given(max_cost=max_cost, max_requests=max_requests)
    # `run` adds them to its recipe
    context.obj = {f"encoding.{key}": value for key, value in encoding.items()}
    context.obj |= {f"spending.{key}": value for key, value in spending.items()}
    if encoding:
        from retrodistill.core.settings import validated
        from retrodistill.encoders.contract import EncodingSettings, encode_with

        context.with_resource(encode_with(validated(EncodingSettings, encoding, "options")))
    if spending:
        from retrodistill.core.spending import spend

        context.with_resource(spend(**spending))


def _given(**options: Any) -> dict[str, Any]:
    return {key: value for key, value in options.items() if value is not None}


CollectionOption = Annotated[
    str, Option(help="BEIR folder (JSONL, TSV, CSV, Parquet...), beir/NAME, ir_datasets:ID, hf:NAME, or demo.")
]
PassagesOption = Annotated[
    str | None,
    Option(
        metavar="WORDS,OVERLAP",
        help="Cut documents into passages, e.g. 120,20, or KEY=VALUE,KEY=VALUE (words, overlap, aggregate, bm25).",
    ),
]
JsonOption = Annotated[bool, Option("--json", help="Print one JSON object for programs, and no progress.")]
OutOption = Annotated[Path, Option(help="Output folder.")]
RunOption = Annotated[Path, Option(help="Run file: .run, .trec, .parquet or .jsonl.")]
StoreOption = Annotated[Path | None, Option(help="Folder for scores and embeddings; by default the shared cache.")]
DryOption = Annotated[bool, Option("--dry-run", help="Only print what is left to do and how long it takes.")]
EngineOption = Annotated[
    str, Option(help="Where models encode and score: local, or ray for the machines of a cluster.")
]
AddressOption = Annotated[
    str | None, Option(help="Of the Ray cluster: HOST:PORT, ray://HOST:PORT, or auto; by default RAY_ADDRESS.")
]


TrustOption = Annotated[
    list[str] | None, Option(metavar="NAME", help="Allow a model to run the code that it brings; repeatable.")
]


def with_trust(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the option ``--trust-remote-code``, and run it with the code of these models allowed."""

    def allowed(trust_remote_code: list[str] | None) -> AbstractContextManager[Any]:
        from retrodistill.encoders.remote_code import trust_remote_code as trust

        return trust(*trust_remote_code or ())

    return _with_options(command, [("trust_remote_code", None, TrustOption)], allowed)


def with_engine(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command ``--engine`` and ``--address``, and run it on that engine; and the option of `with_trust`."""

    def on_engine(engine: str, address: str | None) -> AbstractContextManager[Any]:
        from retrodistill.core.engines import engine as chosen

        return chosen(engine, address=address)

    return with_trust(
        _with_options(command, [("engine", "local", EngineOption), ("address", None, AddressOption)], on_engine)
    )


def _with_options(
    command: Callable[..., None],
    options: Sequence[tuple[str, Any, Any]],
    context: Callable[..., AbstractContextManager[Any]],
) -> Callable[..., None]:
    """A command with more options (name, default, annotation), which runs inside the context that they open."""

    @functools.wraps(command)
    def run(**given: Any) -> None:
        own = {name: given.pop(name) for name, _, _ in options}
        with context(**own):
            command(**given)

    signature = inspect.signature(command, eval_str=True)
    added = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
        for name, default, annotation in options
    ]
    run.__signature__ = signature.replace(parameters=[*signature.parameters.values(), *added])  # type: ignore[attr-defined]
    return run


def typed(text: str) -> str:
    """An argument that is text, not a path, as UTF-8 also in a locale of another encoding; bytes of none stay."""
    try:
        return os.fsencode(text).decode()
    except UnicodeError:
        return text


def show(line: str) -> None:
    """Print a result line."""
    with printing():
        sys.stdout.write(f"{line}\n")


@contextlib.contextmanager
def printing() -> Iterator[None]:
    """Name standard output in errors of writing to it."""
    try:
        yield
    except OSError as error:
        error.filename = "standard output"
        raise


def show_json(value: Any) -> None:
    """Print one JSON object on one line."""
    show(json_text(value, sys.stdout.encoding or "utf-8"))


def say_next(*arguments: object, passages: str | None = None) -> None:
    """Print the command that a user is likely to want next, for the same passages where there are some."""
    cut = [] if passages is None else ["--passages", passages]
    log(f"next: {shlex.join(['retrodistill', *map(str, arguments), *cut])}")


def duration(seconds: float) -> str:
    """Seconds in a readable unit: s, min or h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def this_command() -> str:
    """The command that is running, to print as the one that reproduces its numbers."""
    return f"retrodistill {shlex.join(sys.argv[1:])}"
