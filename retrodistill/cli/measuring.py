"""Commands that measure: evaluate."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from retrodistill.cli.app import CollectionOption, JsonOption, app, show
from retrodistill.progress import set_quiet


@app.command()
def evaluate(
    system: Annotated[list[str], typer.Argument(help="dense:NAME, static:NAME, bm25, run:FILE, or an index' folder.")],
    collection: CollectionOption,
    split: Annotated[str, typer.Option(help="Whose judgements count.")] = "test",
    measure: Annotated[list[str] | None, typer.Option(help="ndcg@k, mrr@k, recall@k, map@k, precision@k.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Measure systems on a collection; queries without results count 0."""
    from retrodistill.api import evaluate as evaluate_systems
    from retrodistill.indexes import AsymmetricIndex
    from retrodistill.measures.ranking import DEFAULT_MEASURES

    set_quiet(as_json)
    systems: dict[str, Any] = {name: AsymmetricIndex.load(name) if Path(name).is_dir() else name for name in system}
    result = evaluate_systems(systems, collection, split, measures=measure or DEFAULT_MEASURES)
    if as_json:
        count = len(next(iter(result.per_query.values())))
        rows = [{"name": name, **values} for name, values in result.means.items()]
        show(json.dumps({"collection": collection, "split": split, "queries": count, "systems": rows}))
    else:
        show(str(result))
