"""Hostile recipes, overrides, options of the command line, names of models, filters, and settings of APIs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from hostile_runner import Case

HUGE = 10**30
# Values of YAML for any key; one that fits a key by chance is no mistake.
VALUES: dict[str, Any] = {
    "null": None,
    "true": True,
    "zero": 0,
    "minus one": -1,
    "a fraction": 0.3,
    "a huge integer": HUGE,
    "beyond 64 bits": 2**64,
    "the largest float": 1.7e308,
    "infinity": float("inf"),
    "NaN": float("nan"),
    "an empty text": "",
    "a text": "nonsense",
    "a NUL": "a\0b",
    "other letters": "пошук ← ☃",
    "half a surrogate pair": "a\ud800",
    "a long text": "x" * 20_000,
    "a path": "../../etc/passwd",
    "an empty list": [],
    "a list of anything": [None, 1, "a", {}, []],
    "an empty mapping": {},
    "a mapping of anything": {"a": 1, 2: [], None: None, "": {}},
    "a date": yaml.safe_load("2020-01-31"),
    "bytes": b"\xff\0",
    "a set": {"a", 1},
}
_LOL = "\n".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 10))
RECIPES = {
    "nothing": "",
    "a list": "- a\n- b\n",
    "a text": "just words",
    "a number": "7",
    "a billion laughs": f"a0: &a0 [lol, lol]\n{_LOL}\nname: *a9\n",
    "a billion laughs as a mapping": "a: &a {x: 1}\nb: &b {x: *a, y: *a}\n" * 1 + "name: *b\n",
    "a list that holds itself": "name: &x [*x]\n",
    "a mapping that holds itself": "students: &x {a: *x}\nname: a\n",
    "an anchor that is not there": "name: *nowhere\n",
    "a tag of Python": "name: !!python/object/apply:os.system ['echo hacked > hacked']\n",
    "a tag of Python's tuples": "name: !!python/tuple [1, 2]\n",
    "an unknown tag": "name: !thing 7\n",
    "two documents": "name: a\n---\nname: b\n",
    "a key twice": "name: a\nname: b\n",
    "tabs": "name:\ta\n\tcollection: b\n",
    "a NUL": "name: a\0b\n",
    "deep nesting": "name: " + "[" * 20_000 + "]" * 20_000 + "\n",
    "deep nesting of mappings": "name: " + "{a: " * 5_000 + "1" + "}" * 5_000 + "\n",
    "a key that is a list": "? [a, b]\n: c\nname: a\n",
    "a key that is a mapping": "? {a: b}\n: c\n",
    "a key that is null": "null: 1\nname: a\n",
    "a key that is a number": "7: 1\nname: a\n",
    "a merge key": "base: &b {name: a}\n<<: *b\n",
    "a merge of a text": "<<: text\nname: a\n",
    "a number of 10,000 digits": f"name: {'9' * 10_000}\n",
    "a time that is none": "name: 2020-99-99\n",
    "a year of 0": "name: 0000-01-01\n",
    "sexagesimal numbers": "name: 190:20:30\n",
    "a byte order mark": "\ufeffname: a\ncollection: tiny\n",
    "unknown keys of 1 MB": f"{'k' * 1_000_000}: 1\n",
    "ten thousand keys": "".join(f"k{n}: 1\n" for n in range(10_000)),
    "half a surrogate pair": 'name: "\\ud800"\n',
    "HTML": "name: <script>alert(1)</script>\nnonsense: 1\n",
    "a directive": "%YAML 9.9\n---\nname: a\n",
}
OVERRIDES = (
    "", "=", "=x", "name", ".", ".=", "..a=1", "name.=1", "a.b.c.d=1", "students.student.stages.99=1", "name=[",
    "students.student.stages.-1.objectives=kl", "students.student.stages.0=7", "students.student.stages=7", "name={}",
    "students.student.stages.²=1", "students.student.stages.١=1", "name=" + "[" * 5000,
    "name=!!python/name:os.system", "name=&a [*a]", "students=", "name=\udcff", "évaluation=1",
    "evaluation.depth=1e999", "evaluation.depth=" + "9" * 5000, "evaluation.depth=2020-99-99", "index=7", "encoding=",
    "students.student=null", "students.student.model=", "students.student.model=static:",
    "students.student.model=dense:", "students.student.model=dense:\0", "students.a/b.model=static",
    "students.../x.model=static", "teacher=run:", "teacher=run:tiny", "teacher=run:/dev/zero", "bm25=nonsense",
    "bm25=..", "collection=", "collection=/", "collection=/dev/null", "collection=beir/", "collection=hf:",
    "collection=ir_datasets:", "collection=\0", "document_encoder=dense:tiny", "document_encoder=bm25",
    "trust_remote_code=7", "passages=0,0", "passages=1,2,3", "passages=words=1e9",
    "passages=9999999999999999999999,1", "passages=a=b=c", "passages=,", "evaluation.measures=[nonsense@5]",
    "evaluation.measures=['ndcg@0']", "evaluation.measures=['ndcg@-1']",
    "evaluation.measures=['P@99999999999999999999']", "evaluation.measures=['RR(rel=x)@10']",
    "evaluation.measures=['']", "evaluation.measures=['__import__(\"os\").system(\"touch hacked\")']",
    "evaluation.truncations=[0]", "evaluation.truncations=[99999]", "split.train=../x", "split.test=train",
    "split.train=test", "name=a/../../b", "name=.", "index.factory=", "index.factory=" + "PQ" * 5000,
    "index.factory=IVF99999999999,Flat", "index.factory=IVF4294967297,Flat", "index.factory=PQ0",
    "index.factory=PQ4x99", "index.factory=HNSW0", "index.factory=HNSW99999999,Flat", "index.factory=PCA0,Flat",
    "index.factory=PCA9999,Flat", "index.factory=OPQ0,PQ4", "index.factory=RR-1,Flat", "index.factory=LSH",
    "index.factory=ITQ,LSH", "index.factory=IDMap,IDMap,Flat", "index.factory=IDMap2,Flat",
    "index.factory=IVF4_HNSW4,Flat", "index.factory=IVF4(IVF4,Flat),Flat", "index.factory=IMI2x4,Flat",
    "index.factory=SQ99", "index.factory=PQ4x4fs_64", "index.factory=RaBitQ", "index.factory=NSG32,Flat",
    "index.factory=RQ4x99", "index.factory=LSQ4x4", "index.factory=PRQ2x2x4", "index.factory=ZnLattice3x10_4",
    "index.factory=Pad99999999999,Flat", "index.factory=L2norm,Flat", "index.factory=Residual4x4,Flat",
    "index.factory=(((", "index.factory=Flat,RFlat,RFlat", "index.factory=PQ4x4,Refine(Flat)", "index.bytes=0",
    "index.bytes=99999999999", "index.truncate=0", "index.truncate=99999999", "index.parameters=nprobe=0",
    "index.parameters=nprobe=-1", "index.parameters=nprobe=99999999999999999999", "index.parameters=x=y",
    "index.parameters=,", "index.parameters=nprobe=nan",
)  # fmt: skip
NAMES = (
    "", ":", "dense", "dense:", ":x", "dense: ", "dense:\0", "dense:\udcff", "dense:..", "dense:.", "dense:/",
    "dense:tiny", "dense:small.yaml", "dense:/dev/null", "dense:/dev/zero", "dense:/proc/self", "dense:model@exit-0",
    "dense:model@exit-99999", "dense:model@exit-99999999999999999999", "dense:model@exit-", "dense:model@exit-²",
    "dense:" + "x" * 100_000, "dense:a/b/c/d", "dense:http://localhost/x", "dense:~nobody/x", "sparse:model",
    "multi-vector:sparse", "static:model", "cross-encoder:static", "prett:model", "tk:model", "bm25:",
    "bm25:nonsense", "bm25:characters", "bm25:auto", "bm25:../x", "bm25:dense:x", "run:", "run:tiny",
    "run:small.yaml", "run:/dev/zero", "run:nowhere.run", "run:good.run.gz", "judgments:", "judgments:nowhere",
    "judgments:test", "function:", "function:os", "function:os:system", "function:nowhere:x", "function:..:x",
    "function:os:", "function:\0:x", "vectors:", "vectors:tiny", "vectors:/dev/zero", "embeddings-api:",
    "embeddings-api:nowhere", "embeddings-api:http://", "embeddings-api:http://[",
    "embeddings-api:http://x:99999999/", "embeddings-api:https://user:pass@host/#m", "embeddings-api:tiny",
    "llm:/dev/zero", "rerank-api:small.yaml", "rerank:", "rerank:bm25", "rerank:@bm25", "rerank:bm25@",
    "rerank:bm25@bm25", "rerank:cross-encoder:cross@nowhere", "rerank:cross-encoder:cross@rerank:bm25@bm25",
    "qdrant:", "qdrant:#", "qdrant:tiny#x", "qdrant:http://#x", "lancedb:", "lancedb:tiny#x", "parquet:",
    "parquet:tiny", "DENSE:model", "dense:model:extra", "dense:model,bm25", "--json", "index-flat", "store", "job",
    "tiny",
)  # fmt: skip
FILTERS = (
    "", " ", "=", "==", "year", "year=", "=7", "year=x", "year>=", "year>>1", "year=1e999", "year=nan",
    "year=" + "9" * 5000, "year=9223372036854775808", "year in", "year in ,", "year in x,y",
    "year in " + ",".join(["1"] * 100_000), "year not in", "lang contains", "lang contains x", "tags contains",
    "tags < x", "tags contains \0", "year exists", "year exists x", "nowhere=1", "nowhere exists", '"year"=2001',
    '"=1', 'lang="', 'lang in "a,b', "open=yes", "open=True", "open=1", "share=0.5", "share=½", "share=١",
    "day=2020-13-99", "day=x", "day=2020-01-31T99:00", "day>0000-01-01", "day<99999-01-01", "{}", "{", "[]", "null",
    "7", '{"or": []}', '{"or": [{}]}', '{"or": {}}', '{"or": [[]]}', '{"year": {}}', '{"year": {"??": 1}}',
    '{"year": {">=": null}}', '{"year": {"in": 7}}', '{"year": {"in": []}}', '{"year": []}', '{"year": [null]}',
    '{"year": [[1]]}', '{"year": null}', '{"year": NaN}', '{"year": 1e999}',
    '{"year": 123456789012345678901234567890}', '{"year": true}', '{"open": 1}', '{"lang": "\\ud800"}',
    '{"lang": "\udcff"}', "lang=\udcff", '{"": 1}', '{"or": ' + '[{"or": ' * 2000 + "[]" + "}]" * 2000 + "}",
    '{"year": {"exists": "x"}}', '{"year": {"exists": 1}}', '{"year": {"null": false}}', '{"day": 7}',
    '{"day": "2020-01-31"}', '{"share": "0.5"}', '{"tags": ["x", 1]}', '{"tags": {"contains": ["x"]}}',
)  # fmt: skip
APIS: dict[str, str] = {
    "nothing": "",
    "a list": "[]",
    "no url": "model: x",
    "a url of a file": "url: file:///etc/passwd",
    "a url that is a number": "url: 7",
    "half an IPv6 address": "url: 'http://['",
    "a port that is none": "url: http://localhost:99999999/",
    "a port of letters": "url: http://localhost:http/",
    "line ends in the url": 'url: "http://localhost/\\r\\nX: y"',
    "a NUL in the url": 'url: "http://localhost/\\0"',
    "a key in the url": "url: http://localhost/?api_key=secret",
    "an unknown key": "url: http://localhost:9\nnonsense: 1",
    "a header without a name": "url: http://localhost:9\nkey_header: '{key}'",
    "line ends in the header": 'url: http://localhost:9\nkey_header: "X: {key}\\r\\nY: z"',
    "a header of other letters": "url: http://localhost:9\nkey_header: 'Ж: {key}'\nretries: 0",
    "a body that is a text": "url: http://localhost:9\nbody: x",
    "a body without placeholders": "url: http://localhost:9\nbody: {a: 1}\nretries: 0",
    "an answer that is not JMESPath": "url: http://localhost:9\nanswer: '[[['",
    "an answer of 1 MB": f"url: http://localhost:9\nanswer: {'a.' * 500_000}a",
    "deep brackets in the answer": f"url: http://localhost:9\nanswer: '{'(' * 20_000}a{')' * 20_000}'",
    "a batch of 0": "url: http://localhost:9\nbatch_size: 0",
    "a batch beyond 64 bits": f"url: http://localhost:9\nbatch_size: {HUGE}\nretries: 0",
    "a concurrency of a billion": "url: http://localhost:9\nconcurrency: 1000000000",
    "an infinite timeout": "url: http://localhost:9\ntimeout: .inf",
    "a timeout beyond what a socket takes": "url: http://localhost:9\ntimeout: 1e300\nretries: 0",
    "a tiny rate": "url: http://localhost:9\nrequests_per_minute: 1e-300\nretries: 0",
    "negative prices": "url: http://localhost:9\ninput_price: -1",
    "a price that is not a number": "url: http://localhost:9\ninput_price: .nan",
    "a key file that is a folder": "url: http://localhost:9\nkey_file: tiny",
    "a key file that is a device": "url: http://localhost:9\nkey_file: /dev/zero",
    "a key file that is not there": "url: http://localhost:9\nkey_file: nowhere",
    "a key file that is not UTF-8": "url: http://localhost:9\nkey_file: binary",
    "a variable that is none": "url: http://localhost:9\nkey_variable: 'a=b'",
    "a variable with a NUL": 'url: http://localhost:9\nkey_variable: "a\\0"',
    "extra that is a list": "url: http://localhost:9\nextra: []",
    "extra with dates": "url: http://localhost:9\nextra: {day: 2020-01-31}\nretries: 0",
    "extra with infinity": "url: http://localhost:9\nextra: {a: .inf}\nretries: 0",
    "extra with a list that holds itself": "url: http://localhost:9\nextra: {a: &x [*x]}\nretries: 0",
    "extra with half a character": 'url: http://localhost:9\nextra: {a: "\\ud800"}\nretries: 0',
    "a billion laughs": f"url: http://localhost:9\na0: &a0 [lol]\n{_LOL}\nextra: {{a: *a9}}\n",
    "nobody there": "url: http://localhost:9\nretries: 0",
}  # fmt: skip
DRY = ("run", "small.yaml", "--out", "made", "--dry-run")


def recipe_cases(_: Path | None = None) -> Iterator[Case]:
    """Recipes that are no recipes, and overrides that do not fit."""
    for what, text in RECIPES.items():
        yield Case(f"recipe: {what}", ("run", "r.yaml", "--out", "made", "--dry-run"), partial(_file, "r.yaml", text))
    for what, content in {
        "not UTF-8": b"name: \xff",
        "UTF-16": "name: a".encode("utf-16"),
        "binary": bytes(range(256)),
    }.items():
        write = partial(_bytes, "r.yaml", content)
        yield Case(f"recipe: {what}", ("run", "r.yaml", "--out", "made", "--dry-run"), write)
    for override in OVERRIDES:
        yield Case(f"override: {_name(override)}", (*DRY, override))


def key_cases(_: Path | None = None) -> Iterator[Case]:
    """Every value at every key of a recipe; each one is refused by its name, or is a value that fits."""
    from retrodistill.recipes.keys import recipe_keys

    for section in recipe_keys():
        for key in section.keys:
            path = tuple({"NAME": "student", "N": 0}.get(part, part) for part in key.path)
            yield Case(f"key: {'.'.join(map(str, path))}", partial(_all_values, path), expect="accepted")


def plan_cases(_: Path | None = None) -> Iterator[Case]:
    """Extreme values that fit, in a plan and in a small job."""
    from retrodistill.core.errors import UserError
    from retrodistill.recipes.keys import recipe_keys
    from retrodistill.recipes.loading import parse_recipe

    for section in recipe_keys():
        for key in section.keys:
            path = tuple({"NAME": "student", "N": 0}.get(part, part) for part in key.path)
            for what, value in VALUES.items():
                content = _with(path, value)
                try:
                    parse_recipe(content)
                except (UserError, Exception):
                    continue
                if value is None or value == []:
                    continue
                name = f"plan: {'.'.join(map(str, path))} is {what}"
                yield Case(name, ("run", "r.yaml", "--out", "made", "--dry-run"), partial(_yaml, "r.yaml", content))


def option_cases(_: Path | None = None) -> Iterator[Case]:
    """Wrong values of every option of every command."""
    import typer

    from retrodistill.cli import app

    commands: dict[str, Sequence[str]] = {
        "mine": ("--collection", "tiny", "--source", "bm25", "--out", "made.run"),
        "score": ("--collection", "tiny", "--candidates", "good.run", "--teacher", "bm25", "--out", "made.run"),
        "distill": ("--collection", "tiny", "--target", "bm25", "--document-encoder", "dense:model", "--out", "made"),
        "index": ("--collection", "tiny", "--documents", "dense:model", "--out", "made"),
        "search": ("index-flat", "star"),
        "check": ("index-flat", "--collection", "tiny", "--latency-queries", "0"),
        "export": ("index-flat", "--out", "made", "--to", "parquet"),
        "evaluate": ("bm25", "--collection", "tiny"),
        "compare": ("bm25", "run:good.run", "--collection", "tiny"),
        "generate": ("--collection", "tiny", "--from", "nowhere.jsonl", "--round-trip", "bm25", "--out", "made.jsonl"),
        "run": ("small.yaml", "--out", "made", "--dry-run"),
        "recipes": (),
        "keys": (),
    }
    values = (
        "",
        "-1",
        "0",
        "99999999999999999999",
        "nan",
        "-inf",
        "1e999",
        "x",
        "\udcff",
        "a\nb",
        "/dev/null",
        "x" * 5000,
    )
    group = typer.main.get_command(app)
    for command, base in commands.items():
        for parameter in group.commands[command].params:  # type: ignore[attr-defined]
            if parameter.param_type_name == "option" and not parameter.is_flag:
                for value in values:
                    option = parameter.opts[0]
                    work = (command, *base, option, value)
                    yield Case(f"option: {command} {option} {_name(value)}", work)
    for parameter in group.params:
        if not parameter.is_flag:
            for value in values:
                work = (parameter.opts[0], value, "index", *commands["index"])
                yield Case(f"option: {parameter.opts[0]} {_name(value)}", work)


def name_cases(_: Path | None = None) -> Iterator[Case]:
    """Names of models where commands take one."""
    for name in NAMES:
        yield Case(f"name: evaluate {_name(name)}", ("evaluate", "--collection", "tiny", "--json", "--", name))
        yield Case(
            f"name: documents {_name(name)}", ("index", "--collection", "tiny", f"--documents={name}", "--out", "made")
        )
        yield Case(
            f"name: teacher {_name(name)}",
            ("score", "--collection", "tiny", "--candidates", "good.run", f"--teacher={name}", "--out", "made.run"),
        )
        yield Case(f"name: queries {_name(name)}", ("search", "index-flat", "star", f"--queries={name}"))


def filter_cases(_: Path | None = None) -> Iterator[Case]:
    """Filters of a search."""
    for number, condition in enumerate(FILTERS):
        work = ("search", "index-flat", "star", "--json", f"--filter={condition}")
        yield Case(f"filter: {number} {_name(condition)}", work)
    for number, query in enumerate(("", " ", "\0", "\udcff", "a" * 1_000_000, "star " * 100_000, "\u202e", "--", "\n")):
        for index in ("index-flat", "index-sparse", "index-tokens", "index-muvera", "index-ivf", "index-passages"):
            yield Case(f"query: {index} {number} {_name(query)}", ("search", "--json", index, "--", query))


def api_cases(_: Path | None = None) -> Iterator[Case]:
    """Settings files of models behind an API."""
    for what, text in APIS.items():
        for kind in ("embeddings-api", "rerank-api", "llm"):
            if kind == "embeddings-api":
                work = ("evaluate", f"{kind}:api.yaml", "--collection", "tiny", "--json")
            else:
                scored = ("--candidates", "good.run", "--teacher", f"{kind}:api.yaml", "--out", "made.run")
                work = ("score", "--collection", "tiny", *scored)
            yield Case(f"api: {kind}, {what}", work, partial(_api, text), expect="refused")


def _api(text: str, folder: Path) -> None:
    (folder / "binary").write_bytes(bytes(range(256)))
    (folder / "binary").chmod(0o600)
    (folder / "api.yaml").write_text(text)


def _file(name: str, text: str, folder: Path) -> None:
    (folder / name).write_bytes(text.encode("utf-8", "surrogatepass"))


def _bytes(name: str, content: bytes, folder: Path) -> None:
    (folder / name).write_bytes(content)


def _yaml(name: str, content: Any, folder: Path) -> None:
    (folder / name).write_text(yaml.safe_dump(content))


def _with(path: Sequence[str | int], value: Any) -> dict[str, Any]:
    """The small recipe with a value at a path, and what is needed around it."""
    stage: dict[str, Any] = {"objectives": "leaf", "training": {"epochs": 1, "learning_rate": 0.01}}
    student = {"model": "static", "control": None, "stages": [stage]}
    content: dict[str, Any] = {
        "name": "small",
        "collection": "tiny",
        "document_encoder": "dense:model",
        "students": {"student": student},
        "evaluation": {"latency_queries": 0, "examples": 1},
    }
    place: Any = content
    for part, following in zip(path, [*path[1:], None], strict=True):
        if following is None:
            place[part] = value
        elif isinstance(place, list):
            place = place[part]
        else:
            if not isinstance(place.get(part), (dict, list)):
                place[part] = [{}] if isinstance(following, int) else {}
            place = place[part]
    return content


def _all_values(path: Sequence[str | int], folder: Path) -> str:
    """Parse a recipe with each value; anything but a `UserError` of one line is an error of this case."""
    from retrodistill.core.errors import UserError
    from retrodistill.recipes.loading import load_recipe, parse_recipe, recipe_yaml

    keys = [str(part) for part in path]
    for what, value in VALUES.items():
        content = _with(path, value)
        for read in (parse_recipe, partial(_written, load_recipe, folder)):
            try:
                recipe_yaml(read(content))
            except UserError as error:
                line = str(error)
                assert "\n" not in line, f"{what}: {line[:200]}"
                assert len(line) < 2500, f"{what}: an error of {len(line)} characters: {line[:100]}"
                assert any(key in line for key in keys) or "surrogate" in line or "YAML" in line, (
                    f"{what}: {keys} are not named: {line[:300]}"
                )
            except Exception as error:
                raise AssertionError(f"{what}: {type(error).__name__}: {str(error)[:200]}") from error
    return "ok"


def _written(load: Any, folder: Path, content: Any) -> Any:
    place = folder / "r.yaml"
    place.write_text(yaml.safe_dump(content))
    return load(place)


def _name(value: str) -> str:
    shown = ascii(value)
    return shown if len(shown) < 60 else f"{shown[:50]}... ({len(value)} characters)"
