"""Commands around indexes: index, check, search, export."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, Option

from retrodistill.cli.app import (
    CollectionOption,
    JsonOption,
    OutOption,
    PassagesOption,
    app,
    say_next,
    show,
    show_json,
    typed,
    with_engine,
    with_trust,
)
from retrodistill.core.errors import UserError
from retrodistill.core.runtime import log, set_quiet

if TYPE_CHECKING:
    from retrodistill.indexes import Index

_LONGEST = 60  # characters of a field that are printed


@app.command()
@with_engine
def index(  # noqa: PLR0913, PLR0917 - one option each
    collection: CollectionOption,
    documents: Annotated[str, Option(help="Document encoder, e.g. dense:all-MiniLM-L6-v2 or sparse:NAME.")],
    out: OutOption,
    option: Annotated[
        list[str] | None, Argument(metavar="KEY=VALUE", help="Any key of a recipe's index, e.g. muvera.candidates=500.")
    ] = None,
    passages: PassagesOption = None,
    queries: Annotated[str | None, Option(help="Query encoder; the document encoder by default.")] = None,
    factory: Annotated[str | None, Option(help="FAISS factory (Flat, SQ8, OPQ48,PQ48, IVF64,Flat...) or auto.")] = None,
    bytes_wanted: Annotated[int | None, Option("--bytes", help="Bytes per document (auto, --learn).", min=1)] = None,
    recall: Annotated[float | None, Option(help="For auto: share of the exact top 10 that search must find.")] = None,
    truncate: Annotated[int | None, Option(help="Leading dimensions to keep (Matryoshka).", min=1)] = None,
    learn: Annotated[
        bool,
        Option(
            "--learn",
            help="Learn the quantizer from exact scores (Distill-VQ); 16 bytes by default, or --bits 1.",
        ),
    ] = False,
    learn_queries: Annotated[
        bool, Option("--learn-queries", help="With --learn: also learn a linear query map, saved in OUT.queries.")
    ] = False,
    codec: Annotated[str | None, Option(help="Multi-vector: float16, float32, or residual (--bits 1, 2, 4).")] = None,
    muvera: Annotated[bool, Option("--muvera", help="Multi-vector: candidates by MUVERA encodings.")] = False,
    bits: Annotated[
        int | None,
        Option(help="Sparse: bits per impact, 8 or 32 (exact). Residual codec: 1, 2, 4. With --learn: 1, 4, 8."),
    ] = None,
    backend: Annotated[str | None, Option(help="Sparse: exact, or seismic (approximate, large corpora).")] = None,
    prune: Annotated[int | None, Option(help="Sparse: terms to keep per document.", min=1)] = None,
    query_cut: Annotated[int | None, Option(help="Seismic: number of heaviest terms that choose lists.", min=1)] = None,
    heap_factor: Annotated[float | None, Option(help="Seismic: 0 to 1; lower is faster and finds less.")] = None,
    fields: Annotated[
        str | None, Option(help="Fields of the documents to store for filters: all (the default), none, or NAME,NAME.")
    ] = None,
    store_texts: Annotated[
        bool, Option("--store-texts", help="Also store titles and texts, which search prints.")
    ] = False,
    seed: Annotated[int, Option(help="Seed of k-means, tuning and learning.")] = 0,
) -> None:
    """Build an index: files of its kind, ids and a manifest with the contract of its space."""
    from retrodistill.indexes.base import check_index_folder

    check_index_folder(out)
    options = _given(
        option,
        factory=factory,
        bytes=bytes_wanted,
        recall=recall,
        truncate=truncate,
        codec=codec,
        muvera=muvera,
        bits=bits,
        backend=backend,
        prune=prune,
        query_cut=query_cut,
        heap_factor=heap_factor,
        fields=fields,
        store_texts=store_texts,
    )
    source = (collection, passages)
    if learn or learn_queries:
        built = _learn(source, (documents, queries), options, out, query_map=learn_queries, seed=seed)
    else:
        built = _build(source, (documents, queries), options, out)
    log(f"{built.size_text}, {built.bytes_per_document():.0f} bytes a document, in {out}")
    say_next("evaluate", out, "--collection", collection)
    say_next("serve", out)


@app.command()
@with_engine
def check(  # noqa: PLR0913, PLR0917 - one option each
    folder: Annotated[Path, Argument(help="An index's folder.")],
    collection: CollectionOption,
    queries: Annotated[str | None, Option(help="Query encoder to check; the index's own by default.")] = None,
    teacher: Annotated[str | None, Option(help="The document encoder, if it has moved.")] = None,
    split: Annotated[str, Option(help="Split whose queries are used.")] = "test",
    k: Annotated[int, Option(help="Depth of the comparison.", min=1)] = 10,
    latency_queries: Annotated[int, Option(help="Queries to time; 0 for none.", min=0)] = 50,
    symmetric: Annotated[bool, Option(help="Also embed the documents with the query encoder, for comparison.")] = True,
    as_json: JsonOption = False,
) -> None:
    """Check a query encoder against an index: is it admitted, what does it keep of the teacher, how fast is it."""
    from retrodistill.data import load_collection
    from retrodistill.evaluation.check import check as check_index
    from retrodistill.indexes import load_index
    from retrodistill.report.tables import check_text

    set_quiet(as_json)
    searched, corpus = load_index(folder, queries), load_collection(collection)
    result = check_index(
        searched, corpus, teacher=teacher, k=k, split=split, latency_queries=latency_queries, symmetric=symmetric
    )
    if as_json:
        show_json(result.to_json())
    else:
        show(check_text(result))


@app.command()
@with_trust
def search(  # noqa: PLR0913, PLR0917 - one option each
    place: Annotated[
        str,
        Argument(
            metavar="INDEX",
            help="A folder, hf:USER/NAME, or a store: qdrant:..., pgvector:..., lancedb:..., elasticsearch:..., "
            "opensearch:..., parquet:...",
        ),
    ],
    query: Annotated[list[str], Argument(help="One or more queries.")],
    k: Annotated[int | None, Option(help="Documents per query; 10, or all of fewer.")] = None,
    queries: Annotated[str | None, Option(help="Another query encoder, of the index's space.")] = None,
    collection: Annotated[
        str | None, Option(help="Show the documents' texts and fields from this collection, not from the index.")
    ] = None,
    filter_by: Annotated[
        list[str] | None,
        Option(
            "--filter",
            metavar="CONDITION",
            help="Only documents whose fields match, e.g. 'year>=2020', 'lang in de,fr', 'tags contains x', "
            "'author = \"A B\"', 'year exists', or a JSON object. All of several must hold.",
        ),
    ] = None,
    parameters: Annotated[str | None, Option(help="FAISS search parameters, e.g. nprobe=16.")] = None,
    aggregate: Annotated[
        str | None, Option(help="Of passages: max, or mean@N for a document's N best; the index's own by default.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Search an index or an exported store. It prints titles, texts and fields where the index stores them."""
    from retrodistill.data import load_collection
    from retrodistill.data.filters import read_filters
    from retrodistill.indexes import load_index
    from retrodistill.indexes.columns import records_of
    from retrodistill.rankers.protocol import check_queries
    from retrodistill.runs.documents import PASSAGE

    set_quiet(as_json)
    query, filter_by = [typed(text) for text in query], [typed(text) for text in filter_by or ()]
    check_queries(query)
    searched = load_index(place, queries, parameters=parameters)
    corpus = searched.as_indexed(load_collection(collection)) if collection else None
    if corpus is not None and (changed := searched.changes(corpus)):
        log(changed)
    chosen = read_filters(filter_by, searched.schema) if filter_by else None
    run = searched.search(query, k=k, filter=chosen, aggregate=aggregate)
    read = searched.fields_of if corpus is None else partial(records_of, corpus)
    hits = run.table.to_pylist()
    records = read([hit.get(PASSAGE, hit["document_id"]) for hit in hits])
    rows = [_row(query, *both) for both in zip(hits, records, strict=True)]
    if corpus is not None and rows and not any("text" in row for row in rows):
        log(f"none of these documents is in {collection}: it is another corpus")
    where = f" among the documents with {' and '.join(filter_by)}" if filter_by else ""
    for place_of_query, text in enumerate(query):
        if str(place_of_query) not in run.query_ids:
            log(f"{text!r} finds nothing{where}")
    if as_json:
        show_json(rows)
        return
    for row in rows:
        text = " ".join(f"{row.get('title', '')} {row.get('text', '')}".split())[:100]
        show(f"{row['score']:.4f}  {row['document_id']}  {text}".rstrip())
        if "fields" in row:
            show("        " + "  ".join(f"{name}={_shown(value)}" for name, value in row["fields"].items()))


@app.command()
@with_trust
def export(  # noqa: PLR0913, PLR0917 - one option each
    source: Annotated[str, Argument(metavar="SOURCE", help="An index's folder; for onnx, a model's name or folder.")],
    out: Annotated[
        str,
        Option(
            help="Folder (embedded Qdrant, LanceDB, Parquet, ONNX, or bulk files for Elasticsearch or OpenSearch), URL "
            "of a server, or PREFIX:PLACE."
        ),
    ],
    option: Annotated[
        list[str] | None, Argument(metavar="KEY=VALUE", help="Any option of the target, e.g. numbers=float16.")
    ] = None,
    to: Annotated[
        str, Option(help="qdrant, pgvector, lancedb, elasticsearch, opensearch, parquet, or onnx (of a model).")
    ] = "qdrant",
    collection: Annotated[
        str | None,
        Option(
            help="The indexed collection: for titles, texts and fields, and where codes are lossy. For onnx: what int8 "
            "is checked on."
        ),
    ] = None,
    quantize: Annotated[str | None, Option(help="ONNX: int8, with the collection to check it on.")] = None,
    min_agreement: Annotated[
        float | None, Option(help="ONNX: least share of the ten best documents that int8 must find; 0.9 by default.")
    ] = None,
    name: Annotated[
        str | None,
        Option(
            help="Name of the Qdrant collection, the table (pgvector, LanceDB), or the index (Elasticsearch, "
            "OpenSearch); the collection's by default."
        ),
    ] = None,
    texts: Annotated[bool, Option("--texts", help="Store the documents' texts, too.")] = False,
    quantization: Annotated[str | None, Option(help="Qdrant: scalar, product or binary.")] = None,
    shards: Annotated[int | None, Option(help="Qdrant: shards of the collection in a cluster.", min=1)] = None,
    replicas: Annotated[int | None, Option(help="Qdrant: copies of each shard.", min=1)] = None,
    batch: Annotated[int | None, Option(help="Documents per request or transaction.", min=1)] = None,
    as_json: JsonOption = False,
) -> None:
    """Export an index to a vector store, a search engine, or files, and verify it; run it again to continue.

    Stores are Qdrant, PostgreSQL (pgvector), LanceDB, Elasticsearch, OpenSearch, and Parquet files. With --to onnx,
    export a model for ONNX Runtime, which encodes several times as fast on a CPU, without torch.
    """
    if to == "onnx":
        options = _given(option, quantize=quantize, min_agreement=min_agreement)
        _export_model(source, out, collection, options, as_json=as_json)
        return
    from retrodistill.data import load_collection
    from retrodistill.exports import export_index
    from retrodistill.exports.protocol import store_class
    from retrodistill.rankers.loading import is_store

    set_quiet(as_json)
    store_class(to)
    options = _given(
        option,
        name=name,
        texts=texts,
        quantization=quantization,
        shards=shards,
        replicas=replicas,
        batch=batch,
        quantize=quantize,
        min_agreement=min_agreement,
    )
    corpus = load_collection(collection) if collection else None
    report = export_index(Path(source), out if is_store(out) else f"{to}:{out}", corpus, options)
    if as_json:
        show_json(report.to_json())
        return
    facts = report.facts
    verified = "read back and equal"
    if "agreement" in facts:
        verified = f"of {facts['sampled']} sampled, the top 10 agree to {facts['agreement']:.1%}"
    written = f"{report.written} written now ({report.seconds:.0f} s)"
    show(f"{report.documents} documents ({report.kind}) in {report.address}, {written}; {verified}")
    if load := facts.get("load"):  # files for a server are loaded before anything is searched
        show(load)
    else:
        say_next("search", report.address, "a question")


def _export_model(source: str, out: str, collection: str | None, options: dict[str, Any], *, as_json: bool) -> None:
    from retrodistill.data import load_collection
    from retrodistill.exports.onnx import export_onnx

    set_quiet(as_json)
    report = export_onnx(source, out, load_collection(collection) if collection else None, options)
    if as_json:
        show_json(report.to_json())
        return
    sizes = ", ".join(f"{name} {size:.0f} MB" for name, size in report.megabytes.items())
    show(f"{report.kind} model in {report.folder}: {sizes}")
    if (close := report.fidelity) is not None:
        what = "correlation" if report.kind == "cross-encoder" else "cosine"
        show(f"int8 finds {close.agreement:.1%} of the same ten best documents ({what} {close.similarity:.4f})")
        if close.kept:
            show(f"{close.kept} of {close.matrices} matrices stay in float32")


def _given(pairs: list[str] | None, **flags: Any) -> dict[str, Any]:
    """Options of ``KEY=VALUE`` arguments and of the flags that were given."""
    from retrodistill.recipes.loading import override

    content: dict[str, Any] = {name: value for name, value in flags.items() if value not in (None, False)}
    for pair in pairs or []:
        override(content, pair)
    return content


def _row(query: list[str], found: dict[str, Any], record: dict[str, Any]) -> dict[str, Any]:
    """A row of a run with what is stored of the document: title and text, and its fields under a key of their own."""
    from retrodistill.data.fields import to_json
    from retrodistill.indexes.columns import TEXTS
    from retrodistill.runs.documents import PASSAGE

    fields = {name: to_json(value) for name, value in record.items() if name not in TEXTS}
    passage = {PASSAGE: found[PASSAGE]} if PASSAGE in found else {}
    hit = {"query": query[int(found["query_id"])], "document_id": found["document_id"], **passage}
    texts = {name: record[name] for name in TEXTS if name in record}
    return {**hit, "score": found["score"], **texts, **({"fields": fields} if fields else {})}


def _shown(value: Any) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"


def _build(
    source: tuple[str, str | None], encoders: tuple[str, str | None], options: dict[str, Any], out: Path
) -> Index:
    """Build and save an index of (document encoder, query encoder); options are checked before any work starts.

    The source is a collection's name and its passages.
    """
    from retrodistill.core.settings import validated
    from retrodistill.data import load_collection
    from retrodistill.encoders import load_encoder
    from retrodistill.indexes import IndexOptions, build_index

    settings = validated(IndexOptions, options, "index")
    collection, encoder = load_collection(source[0], passages=source[1]), load_encoder(encoders[0])
    settings.checked_kind(encoder.kind, options)
    built = build_index(collection, encoder, encoders[1], settings=settings)
    built.save(out)
    return built


def _learn(
    source: tuple[str, str | None],
    encoders: tuple[str, str | None],
    options: dict[str, Any],
    out: Path,
    *,
    query_map: bool,
    seed: int,
) -> Index:
    """Learn a quantizer, save the index, and show how it compares with OPQ at the same bytes."""
    from retrodistill.core.settings import validated
    from retrodistill.data import load_collection
    from retrodistill.encoders import load_encoder
    from retrodistill.encoders.any_encoder import DENSE
    from retrodistill.encoders.reading import readable
    from retrodistill.indexes import IndexOptions
    from retrodistill.indexes.learned import learn_index, save_query_map, texts_with_vectors
    from retrodistill.quantizers import QuantizerSettings, factory_for
    from retrodistill.quantizers.settings import with_query_map

    strange = [name for name in options if name not in ("bytes", "bits", "factory", "fields", "store_texts")]
    if strange:
        raise UserError(f"--learn takes --bytes and --bits, or --factory; leave {strange[0]} out.")
    if "factory" in options and "bits" in options:
        raise UserError(f"--bits {options['bits']}: factory {options['factory']} already says how many a code has.")
    given, encoder = load_collection(source[0], passages=source[1]), load_encoder(encoders[0], DENSE)
    collection = readable(encoder, given)
    columns = validated(IndexOptions, options, "index").columns_of(collection)
    query_encoder = None if encoders[1] is None else load_encoder(encoders[1], DENSE)
    texts = texts_with_vectors(collection, query_encoder or encoder, seed=seed)
    target = options.get("factory") or factory_for(options.get("bytes"), encoder.dimension, bits=options.get("bits", 8))
    settings = QuantizerSettings(seed=seed)
    if query_map:
        settings = with_query_map(settings)
    result = learn_index(collection, encoder, texts, queries=query_encoder, target=target, settings=settings)
    result.index.columns = columns
    result.index.set_source(given)
    if result.learned.query_map is not None:
        save_query_map(result, out.with_name(f"{out.name}.queries"))
    result.index.save(out)
    before, after = result.learned.agreement
    start = f"{result.start.name.upper()} at the same bytes ({result.learned.factory}) {before:.4f}"
    note = "" if result.learned.improved else " Learning did not improve it: the index is its start."
    show(f"agreement with exact search on held-out queries (0 to 1): {after:.4f}, {start}.{note}")
    return result.index
