"""Elasticsearch or OpenSearch as far as exports need one: it stores documents, and answers as the documentation says.

What the documented APIs do not take is refused with status 400, so that a test that passes speaks the API. Written from
the references of Elasticsearch 8.15 to 9.2 and OpenSearch 2.16 to 3.1; it is not a server that was recorded.
"""

import contextlib
import datetime
import json
import re
import threading
from http.server import BaseHTTPRequestHandler
from urllib.parse import parse_qs, unquote, urlsplit

import numpy as np
from local_server import LocalServer

TYPES = {
    "elasticsearch": {"dense_vector", "sparse_vector"},
    "opensearch": {"knn_vector", "rank_features"},
}
KEYWORD_LIMIT = 32766  # bytes of a term of Lucene
VERSIONS = {
    "elasticsearch": {"number": "9.2.0", "build_flavor": "default"},
    "opensearch": {"number": "3.1.0", "distribution": "opensearch"},
}


class Refusal(Exception):
    def __init__(self, status, kind, reason):
        self.status = status
        self.error = {"type": kind, "reason": reason}

    @property
    def body(self):
        return {"error": {**self.error, "root_cause": [self.error]}, "status": self.status}


def illegal(reason):
    return Refusal(400, "illegal_argument_exception", reason)


def expect(value, required, optional=()):
    """An object with the keys that the API documents."""
    if not isinstance(value, dict) or not set(required) <= set(value) <= set(required) | set(optional):
        raise illegal(f"expected {required} and maybe {optional}, got {value!r:.200}")
    return value


class Index:
    def __init__(self, engine, body):
        expect(body, ["mappings"], ["settings", "aliases"])
        self.engine, self.settings = engine, body.get("settings", {})
        expect(self.settings, [], ["index"])
        self.knn = expect(self.settings.get("index", {}), [], ["knn", "number_of_shards", "number_of_replicas"]).get(
            "knn", False
        )
        mappings = expect(body["mappings"], ["properties"], ["dynamic", "_meta"])
        self.meta, self.dynamic = mappings.get("_meta", {}), mappings.get("dynamic", True)
        self.properties = mappings["properties"]
        for name, mapping in self.properties.items():
            self.check_mapping(name, mapping)
        self.documents, self.visible = {}, {}

    def check_mapping(self, name, mapping):
        if not name.strip() or name.startswith("_") or "." in name:
            raise illegal(f"field name [{name}]")
        kind = mapping["type"]
        keys = {
            "keyword": ["ignore_above"],
            "text": ["fields"],
            "date": ["format"],
            "dense_vector": ["dims", "index", "similarity", "index_options"],
            "knn_vector": ["dimension", "method"],
        }.get(kind, [])
        expect(mapping, ["type"], keys)
        if kind in TYPES["elasticsearch"] | TYPES["opensearch"]:
            if kind not in TYPES[self.engine]:
                raise Refusal(400, "mapper_parsing_exception", f"No handler for type [{kind}]")
        elif kind not in ("keyword", "text", "date", "boolean", "long", "double"):
            raise illegal(f"type [{kind}]")
        if kind == "dense_vector":
            self.check_dense(mapping)
        if kind == "knn_vector":
            method = expect(mapping["method"], ["name", "engine", "space_type"], ["parameters"])
            expect(method["parameters"], [], ["m", "ef_construction"])
            assert (method["name"], method["space_type"]) == ("hnsw", "innerproduct")
            assert method["engine"] in ("faiss", "lucene")
            if not self.knn:
                raise illegal("Cannot set method when index.knn is not true")

    def check_dense(self, mapping):
        options = expect(mapping["index_options"], ["type"], ["m", "ef_construction", "rescore_vector"])
        assert mapping["similarity"] in ("cosine", "dot_product", "max_inner_product", "l2_norm")
        assert options["type"] in ("hnsw", "int8_hnsw", "int4_hnsw", "bbq_hnsw", "flat")
        if options["type"] == "flat" and len(options) > 1:
            raise illegal("flat takes no parameters")
        if not 1 <= mapping["dims"] <= 4096:
            raise illegal("dims")

    def put(self, id_, source):
        if not 1 <= len(id_.encode()) <= 512:
            raise illegal(f"id is too long, must be no longer than 512 bytes but was: {len(id_.encode())}")
        for name, value in source.items():
            mapping = self.properties.get(name)
            if mapping is None:
                raise Refusal(400, "strict_dynamic_mapping_exception", f"[{name}] is not allowed by [strict]")
            for item in value if isinstance(value, list) and "vector" not in mapping["type"] else [value]:
                self.check_value(name, mapping, item)
        self.documents[id_] = source

    def check_value(self, name, mapping, value):
        kind = mapping["type"]
        right = {"boolean": bool, "long": int, "double": (int, float), "keyword": str, "text": str, "date": str}
        if value is not None and kind in right and not isinstance(value, right[kind]):
            raise Refusal(400, "document_parsing_exception", f"failed to parse field [{name}] of type [{kind}]")
        if kind == "keyword" and value is not None and len(value.encode()) > KEYWORD_LIMIT:
            assert len(value) > mapping["ignore_above"], "immense term"
        if kind == "date":
            moment(value, up=False)
        if kind in ("dense_vector", "knn_vector"):
            size = mapping.get("dims", mapping.get("dimension"))
            if len(value) != size:
                raise Refusal(400, "document_parsing_exception", f"dims of [{name}] are {size}, got {len(value)}")
        if kind in ("sparse_vector", "rank_features"):
            for feature, weight in value.items():
                if "." in feature or not feature:
                    raise illegal(f"[{kind}] fields do not support dots in feature names but found [{feature}]")
                if weight < np.finfo(np.float32).tiny:
                    raise illegal(f"featureValue must be a positive normal float, got: {weight}")

    # Values of a document as the index has them, and queries on them.

    def values(self, source, field):
        name, _, part = field.partition(".")
        mapping = self.properties[name]
        if part:
            mapping = mapping["fields"][part]
        held = source.get(name)
        items = [item for item in (held if isinstance(held, list) else [held]) if item is not None]
        if "ignore_above" in mapping:
            items = [item for item in items if len(item.encode("utf-16-le")) // 2 <= mapping["ignore_above"]]
        return mapping["type"], items

    def matches(self, query, source, id_):
        [[kind, body]] = query.items()
        return getattr(self, f"match_{kind}")(body, source, id_)

    def match_match_all(self, body, source, id_):
        return not expect(body, [])  # an empty object

    def match_match_none(self, body, source, id_):
        return bool(expect(body, []))

    def match_ids(self, body, source, id_):
        return id_ in expect(body, ["values"])["values"]

    def match_exists(self, body, source, id_):
        _, items = self.values(source, expect(body, ["field"])["field"])
        return bool(items)

    def match_term(self, body, source, id_):
        [[field, wanted]] = body.items()
        return self.match_terms({field: [expect(wanted, ["value"])["value"]]}, source, id_)

    def match_terms(self, body, source, id_):
        [[field, wanted]] = body.items()
        kind, items = self.values(source, field)
        assert kind != "text", "terms of a text are its words"
        for value in wanted:
            if kind == "date":
                low, high = moment(value, up=False), moment(value, up=True)
                if any(low <= moment(item, up=False) <= high for item in items):
                    return True
            elif any(item == value and (kind == "double" or type(item) is type(value)) for item in items):
                return True
        return False

    def match_range(self, body, source, id_):
        [[field, bounds]] = body.items()
        kind, items = self.values(source, field)
        assert kind not in ("text", "boolean")
        expect(bounds, [], ["gt", "gte", "lt", "lte"])

        def passes(item):
            for word, bound in bounds.items():
                left, right = item, bound
                if kind == "date":  # what a bound leaves out is filled up to the end where that is meant
                    left, right = moment(item, up=False), moment(bound, up=word in ("gt", "lte"))
                elif kind == "keyword":
                    left, right = item.encode(), bound.encode()
                if not {"gt": left > right, "gte": left >= right, "lt": left < right, "lte": left <= right}[word]:
                    return False
            return True

        return any(map(passes, items))

    def match_bool(self, body, source, id_):
        expect(body, [], ["filter", "must", "must_not", "should", "minimum_should_match"])
        parts = [*body.get("filter", []), *body.get("must", [])]
        if not all(self.matches(part, source, id_) for part in parts):
            return False
        if any(self.matches(part, source, id_) for part in body.get("must_not", [])):
            return False
        least = body.get("minimum_should_match", 0)
        return sum(self.matches(part, source, id_) for part in body.get("should", [])) >= least

    def match_sparse_vector(self, body, source, id_):
        return self.score({"sparse_vector": body}, source) > 0

    def match_neural_sparse(self, body, source, id_):
        return self.score({"neural_sparse": body}, source) > 0

    def score(self, query, source):
        """Of a scoring query; 1 for all others."""
        [[kind, body]] = query.items()
        if kind == "bool":
            return sum(self.score(part, source) for part in body.get("must", []))
        if kind not in ("sparse_vector", "neural_sparse"):
            return 1.0
        assert kind == {"elasticsearch": "sparse_vector", "opensearch": "neural_sparse"}[self.engine]
        if kind == "sparse_vector":
            weights = expect(body, ["field", "query_vector"], ["prune"])["query_vector"]
            assert body["prune"] is False, "later versions prune by default"
            field = body["field"]
        else:
            [[field, given]] = body.items()
            weights = expect(given, ["query_tokens"])["query_tokens"]
            if not all(0 < weight <= 64 for weight in weights.values()):
                raise illegal("weight must be in ]0, 64]")
        if len(weights) > 1024:
            raise Refusal(400, "too_many_clauses", "maxClauseCount is set to 1024")
        features = source.get(field, {})
        return float(sum(weight * kept(features[name]) for name, weight in weights.items() if name in features))

    def search(self, body, *, multi=False):
        expect(body, ["size"], ["query", "knn", "_source", "fields"])
        if body["size"] > 10_000:
            raise illegal("Result window is too large")
        knn, query, k = body.get("knn"), body.get("query"), body["size"]
        if knn is None and query is not None and "knn" in query:
            [[field, given]] = query["knn"].items()
            expect(given, ["vector", "k"], ["filter", "method_parameters"])
            expect(given.get("method_parameters", {}), [], ["ef_search"])
            knn = {"field": field, "query_vector": given["vector"], "k": given["k"], "filter": given.get("filter")}
            assert self.engine == "opensearch"
        elif knn is not None:
            assert self.engine == "elasticsearch"
            expect(knn, ["field", "query_vector", "k", "num_candidates"], ["filter", "rescore_vector"])
            if not knn["k"] <= knn["num_candidates"] <= 10_000:
                raise illegal("[num_candidates] must be between [k] and 10000")
        if knn is not None:
            hits, k = self.nearest(knn), min(k, knn["k"])
        else:
            passing = [id_ for id_, source in self.visible.items() if self.matches(query, source, id_)]
            hits = [(id_, self.score(query, self.visible[id_])) for id_ in passing]
        hits.sort(key=lambda hit: -hit[1])
        rows = [self.hit(id_, score, body) for id_, score in hits[:k]]
        shards = {"total": 1, "successful": 1, "skipped": 0, "failed": 0}
        answer = {
            "took": 1,
            "timed_out": False,
            "_shards": shards,
            "hits": {"total": {"value": len(hits)}, "hits": rows},
        }
        return {**answer, "status": 200} if multi else answer

    def nearest(self, knn):
        mapping = self.properties[knn["field"]]
        size = mapping.get("dims", mapping.get("dimension"))
        query = np.array(knn["query_vector"], np.float32)
        if len(query) != size:
            raise illegal(f"the query vector has a different dimension [{len(query)}] than the index vectors [{size}]")
        passing = knn.get("filter") or {"match_all": {}}
        found = []
        for id_, source in self.visible.items():
            if knn["field"] in source and self.matches(passing, source, id_):
                product = np.float32(query @ np.array(source[knn["field"]], np.float32))
                score = product + np.float32(1) if product >= 0 else 1 / (1 - product)
                found.append((id_, float(np.float32(score))))
        return found

    def hit(self, id_, score, body):
        source, hit = self.visible[id_], {"_index": "i", "_id": id_, "_score": score}
        if body.get("fields"):
            assert self.engine == "elasticsearch"
            hit["fields"] = {
                name: [{feature: kept(weight) for feature, weight in source[name].items()}]
                if isinstance(source[name], dict)
                else source[name]
                for name in body["fields"]
                if name in source
            }
        wanted = body.get("_source", True)
        if wanted is not False:
            hit["_source"] = self.source(source, wanted if isinstance(wanted, list) else None)
        return hit

    def source(self, source, included=None, excluded=()):
        # Elasticsearch 9.2 leaves vectors out.
        hidden = [*excluded, *(["vector"] if self.engine == "elasticsearch" else [])]
        return {
            name: value
            for name, value in source.items()
            if name not in hidden and (included is None or name in included)
        }


def kept(weight):
    """What a feature field keeps of a float32: 9 significant bits, the rest cut off."""
    return float((np.float32(weight).reshape(1).view(np.int32) >> 15 << 15).view(np.float32)[0])


def moment(text, *, up):
    """Milliseconds since 1970 of what `strict_date_optional_time` reads; what is missing is the least or greatest."""
    if not re.fullmatch(r"\d{4}-\d\d-\d\d(T\d\d:\d\d:\d\d(\.\d{1,9})?(Z|[+-]\d\d:\d\d)?)?", text):
        raise Refusal(400, "document_parsing_exception", f"failed to parse date field [{text}]")
    parsed = datetime.datetime.fromisoformat(text)
    parsed = parsed if parsed.tzinfo else parsed.replace(tzinfo=datetime.UTC)
    if up and "T" not in text:
        parsed = parsed.replace(hour=23, minute=59, second=59, microsecond=999_999)
    elif up and "." not in text:
        parsed = parsed.replace(microsecond=999_999)
    return (parsed - datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)) // datetime.timedelta(milliseconds=1)


class Server:
    """What was asked of it, and its indexes.

    Attributes:
        url: Where it listens.
        indexes: By name.
        asked: (method, path, body) of each request.
        faults: Taken one per request: (status, answer), where to redirect, "drop" for no answer, or None for no fault.
        busy: Ids whose next write is rejected once, each.
        broken: Ids whose write fails, with the error of the item: (status, type).
        blocked: Whether the disk is full.
        authorization: The header it wants; None for none.
    """

    def __init__(self, engine):
        self.engine, self.indexes, self.asked = engine, {}, []
        self.version, self.faults, self.busy, self.broken = VERSIONS[engine], [], set(), {}
        self.blocked, self.authorization = False, None
        self.lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            wbufsize = -1  # one packet: a client waits for the second of two

            def answer(self):
                content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                with outer.lock, contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    outer.respond(self, content)

            do_GET = do_HEAD = do_PUT = do_POST = answer

            def log_message(self, *_):
                pass

        self._local = LocalServer(Handler)
        self.url, self.close = self._local.url, self._local.close

    def place(self, name):
        return f"{self.engine}:{self.url}#{name}"

    def respond(self, request, content):
        self.asked.append((request.command, request.path, content))
        fault = self.faults.pop(0) if self.faults else None
        if fault == "drop":
            request.close_connection = True
            return
        if isinstance(fault, str):
            request.send_response(307)
            request.send_header("Location", fault)
            request.send_header("Content-Length", "0")
            request.end_headers()
            return
        try:
            if self.authorization and request.headers.get("Authorization") != self.authorization:
                said = f"unable to authenticate with {request.headers.get('Authorization')}"
                raise Refusal(401, "security_exception", said)
            status, body = fault or (200, self.result(request, content))
        except Refusal as refusal:
            status, body = refusal.status, refusal.body
        sent = body if isinstance(body, bytes) else json.dumps(body).encode()
        sent = b"" if request.command == "HEAD" else sent
        request.send_response(status)
        request.send_header("Content-Length", str(len(sent)))
        request.end_headers()
        request.wfile.write(sent)

    def result(self, request, content):
        url = urlsplit(request.path)
        options = {name: values[0] for name, values in parse_qs(url.query).items()}
        parts = [unquote(part) for part in url.path.strip("/").split("/") if part]
        if not parts:
            return {"name": "stub", "version": self.version, "tagline": "You Know, for Search"}
        if content:
            lines = parts[-1] in ("_bulk", "_msearch")
            assert request.headers["Content-Type"] == f"application/{'x-ndjson' if lines else 'json'}"
        name, verb = ("", parts[0]) if parts[0].startswith("_") else (parts[0], "/".join(parts[1:]))
        method = f"{request.command.lower()}{verb or '_index'}"
        return getattr(self, method)(name, content, options)

    def index(self, name):
        if name not in self.indexes:
            raise Refusal(404, "index_not_found_exception", f"no such index [{name}]")
        return self.indexes[name]

    def head_index(self, name, content, options):
        return self.index(name) and {}

    def put_index(self, name, content, options):
        if name in self.indexes:
            raise Refusal(400, "resource_already_exists_exception", f"index [{name}] already exists")
        if name != name.lower() or re.search(r"[\\/*?\"<>| ,#:]|^[-_+]", name) or len(name.encode()) > 255:
            raise Refusal(400, "invalid_index_name_exception", f"Invalid index name [{name}]")
        self.indexes[name] = Index(self.engine, json.loads(content))
        return {"acknowledged": True, "shards_acknowledged": True, "index": name}

    def get_mapping(self, name, content, options):
        if name:
            index = self.index(name)
            return {name: {"mappings": {"_meta": index.meta, "properties": index.properties}}}
        assert options == {"filter_path": "*.mappings._meta.retrodistill.artifact"}
        held = {one: index.meta.get("retrodistill") for one, index in self.indexes.items()}
        return {
            one: {"mappings": {"_meta": {"retrodistill": {"artifact": meta["artifact"]}}}}
            for one, meta in held.items()
            if meta
        }

    def put_mapping(self, name, content, options):
        self.index(name).meta = expect(json.loads(content), ["_meta"])["_meta"]
        return {"acknowledged": True}

    def post_bulk(self, name, content, options):
        index = self.index(name)
        assert content.endswith(b"\n")
        shown = ("errors,items.*._id,items.*.status,items.*.error", "errors,items.*.error")
        assert options["filter_path"] in shown
        lines = content.splitlines()  # of bytes: at \n alone
        items = [self.write(index, *map(json.loads, lines[at : at + 2])) for at in range(0, len(lines), 2)]
        return {"errors": any("error" in item["index"] for item in items), "items": items}

    def write(self, index, action, source):
        id_ = expect(expect(action, ["index"])["index"], ["_id"])["_id"]
        try:
            if self.blocked:
                said = "index [i] blocked by: [TOO_MANY_REQUESTS/12/disk usage exceeded flood-stage watermark]"
                raise Refusal(429, "cluster_block_exception", said)
            if id_ in self.busy:
                self.busy.remove(id_)
                raise Refusal(429, "es_rejected_execution_exception", "rejected execution of primary operation")
            if id_ in self.broken:
                raise Refusal(*self.broken[id_], "it does not fit")
            index.put(id_, source)
        except Refusal as refusal:
            return {"index": {"_id": id_, "status": refusal.status, "error": refusal.error}}
        return {"index": {"_id": id_, "status": 201}}

    def post_refresh(self, name, content, options):
        index = self.index(name)
        index.visible = dict(index.documents)
        return {"_shards": {"total": 1, "successful": 1, "failed": 0}}

    def post_mget(self, name, content, options):
        index, wanted = self.index(name), expect(json.loads(content), ["ids"])["ids"]
        expect(options, [], ["_source", "_source_excludes"])
        docs = []
        for id_ in wanted:
            found = {"_index": name, "_id": id_, "found": id_ in index.documents}
            if found["found"] and options.get("_source") != "false":
                found["_source"] = index.source(index.documents[id_], None, [options.get("_source_excludes")])
            docs.append(found)
        return {"docs": docs}

    def get_count(self, name, content, options):
        return {"count": len(self.index(name).visible), "_shards": {"failed": 0}}

    def post_search(self, name, content, options):
        return self.index(name).search(json.loads(content))

    def post_msearch(self, name, content, options):
        lines = content.split(b"\n")
        assert lines.pop() == b""
        index, responses = self.index(name), []
        for header, body in zip(lines[::2], lines[1::2], strict=True):
            assert json.loads(header) == {}
            try:
                responses.append(index.search(json.loads(body), multi=True))
            except Refusal as refusal:
                responses.append(refusal.body)
        return {"took": 1, "responses": responses}


@contextlib.contextmanager
def running(engine):
    server = Server(engine)
    try:
        yield server
    finally:
        server.close()
