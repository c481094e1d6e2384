"""The command line's main paths in other environments: locales, time zones, processors, threads, no home folder.

Each environment is one process for each step, as a user's shell starts it, since locales and OpenMP are read at the
start of a process.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from children import MAIN

from retrodistill.core.json_files import read_json
from retrodistill.runs import read_run

SAVED = Path(__file__).parents[1] / "fixtures" / "saved_at_0.1.0"
ROOT = Path(__file__).parents[2]
LOCALES = str(Path(tempfile.gettempdir()) / "retrodistill-locales")
DOCUMENTS = {
    "größe": "Die Größe des Herzens — «heart» 心脏",
    "日本": "血管と心臓の新しい研究 🫀 heart",
    "plain": "bread with butter and garlic",
    "ohne": "naïve café, 3,14 planet",
}
PLAIN = {"LANG": "C.UTF-8", "LC_ALL": "C.UTF-8", "TZ": "UTC", "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "1"}
ENVIRONMENTS = {
    "no home": {"HOME": None},
    "the locale C": {"LANG": "C", "LC_ALL": "C"},
    "the locale C without UTF-8 mode": {"LANG": "C", "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    "Latin-1 output": {"PYTHONIOENCODING": "latin-1"},
    "ASCII output": {"PYTHONIOENCODING": "ascii"},
    "decimal commas": {"LANG": "de_DE.UTF-8", "LC_ALL": "de_DE.UTF-8", "LOCPATH": LOCALES},
    "an unknown locale": {"LANG": "xx_YY", "LC_ALL": "xx_YY"},
    "a time zone ahead": {"TZ": "Pacific/Kiritimati"},
    "a time zone of half hours": {"TZ": "Asia/Kolkata"},
    "no AVX-512": {
        "FAISS_OPT_LEVEL": "avx2",
        "ATEN_CPU_CAPABILITY": "avx2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "OPENBLAS_CORETYPE": "Haswell",
        "NPY_DISABLE_CPU_FEATURES": "AVX512F AVX512CD AVX512_SKX AVX512_CLX AVX512_CNL AVX512_ICL AVX512_SPR",
    },
    "no AVX": {"FAISS_OPT_LEVEL": "generic", "ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41"},
    "two threads": {"OMP_NUM_THREADS": "2"},
    "another hash seed": {"PYTHONHASHSEED": "2"},
}
# Vectors of other instructions or threads differ in the last bits, and so do scores.
EQUAL_BYTES = [name for name in ENVIRONMENTS if name not in ("no AVX-512", "no AVX", "two threads")]


def environment_of(name, cache):
    given = {**os.environ, **PLAIN, **ENVIRONMENTS.get(name, {})}
    given |= {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "RETRODISTILL_CACHE": str(cache)}
    return {key: value for key, value in given.items() if value is not None}


STEPS = """
import sys
from retrodistill.cli import main
steps = [[]]
for argument in sys.argv[1:]:
    steps.append([]) if argument == "then" else steps[-1].append(argument)
for step in steps:
    try:
        main(step)
    except SystemExit as error:
        if error.code:
            raise
"""


def work(folder, name):
    """What a job of each kind prints: mining, indexing, searching, evaluating, and training, in one process."""
    # a locale of another encoding hides the characters of a file name, and names of collections are of characters
    corpus = folder / ("corpus" if "PYTHONUTF8" in ENVIRONMENTS.get(name, {}) else "größen 大")
    (corpus / "qrels").mkdir(parents=True)
    rows = [json.dumps({"_id": key, "text": text}, ensure_ascii=False) for key, text in DOCUMENTS.items()]
    rows += (SAVED / "collection" / "corpus.jsonl").read_text(encoding="utf-8").splitlines()
    queries = {"ä": "Größe heart", "q2": "bread garlic", "q3": "planet", "q4": "flute and piano"}
    lines = [json.dumps({"_id": key, "text": text}, ensure_ascii=False) for key, text in queries.items()]
    (corpus / "corpus.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    (corpus / "queries.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    for split, judged in (("train", "q3\tohne\t1\nq4\td3\t1\n"), ("test", "ä\tgröße\t2\nq2\tplain\t1\n")):
        (corpus / "qrels" / f"{split}.tsv").write_text(f"query-id\tcorpus-id\tscore\n{judged}", encoding="utf-8")
    encoder, of = f"dense:{SAVED / 'hybrid'}", ["--collection", corpus.name]
    exact = ["--precision", "float32"]
    steps = [
        ["mine", *of, "--split", "all", "--source", "bm25", "--depth", "4", "--out", "mined.run"],
        [*exact, "index", *of, "--documents", encoder, "--out", "index", "--store-texts"],
        [*exact, "search", "index", "Größe heart", "--k", "3"],
        [*exact, "evaluate", "bm25", encoder, *of, "--out", "evaluated"],
        [*exact, "distill", *of, "--target", encoder, "--document-encoder", encoder, "--out", "student"],
    ]
    code = STEPS
    if "LOCPATH" in ENVIRONMENTS.get(name, {}):  # a program that uses the library, and the user's numbers
        code = f"import locale\nlocale.setlocale(locale.LC_ALL, '')\nassert locale.str(0.5) == '0,5'\n{code}"
    run = subprocess.run(
        [sys.executable, "-c", code, *(argument for step in steps for argument in [*step, "then"])][:-1],
        cwd=folder,
        env=environment_of(name, folder / "cache"),
        capture_output=True,
        check=False,
    )
    said = (run.stdout + run.stderr).decode("utf-8", "replace")
    assert run.returncode == 0, said
    assert "Traceback" not in said
    return run.stdout


def written(folder):
    """Bytes of all files that hold numbers, by name."""
    names = ["mined.run", "index/index.faiss", "index/documents.arrow"]
    files = [
        *map(folder.joinpath, names),
        *(folder / "evaluated").rglob("*.run"),
        *(folder / "student").rglob("*.safetensors"),
    ]
    return {path.name: path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plain")
    return folder, work(folder, "plain")


@pytest.fixture(scope="module")
def german():
    """The system's sources of locales, compiled, as few machines have the locale itself."""
    compiler = shutil.which("localedef")
    if compiler is None:
        pytest.skip("localedef is not installed")
    Path(LOCALES).mkdir(exist_ok=True)
    subprocess.run([compiler, "-i", "de_DE", "-f", "UTF-8", f"{LOCALES}/de_DE.UTF-8"], check=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_jobs_give_the_same_in(name, plain, tmp_path, request):
    if name == "decimal commas":
        request.getfixturevalue("german")
    printed = work(tmp_path, name)
    if name in EQUAL_BYTES:
        assert written(tmp_path) == written(plain[0])
    folders = (tmp_path, plain[0])
    ours, theirs = (read_json(*folder.glob("evaluated/*/results.json"))["systems"] for folder in folders)
    for mine, other in zip(ours, theirs, strict=True):
        assert mine["name"] == other["name"]
        assert mine["ndcg@10"] == pytest.approx(other["ndcg@10"], abs=1e-6)
    ours, theirs = read_run(tmp_path / "mined.run").to_dict(), read_run(plain[0] / "mined.run").to_dict()
    assert ours == theirs
    assert "größe" in ours["ä"]
    assert printed.count(b"\n") >= 3


def test_a_user_without_a_home_is_told_to_set_the_cache(tmp_path):
    code = f"import os, pwd; os.environ.pop('RETRODISTILL_CACHE'); pwd.getpwuid = lambda _: {{}}[0]; {MAIN}"
    argv = [sys.executable, "-c", code, "mine", "--collection", str(SAVED / "collection"), "--source", "bm25"]
    run = subprocess.run(
        [*argv, "--out", "mined.run"],
        cwd=tmp_path,
        env=environment_of("no home", tmp_path),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (run.returncode, run.stderr.count("\n")) == (2, 1), run.stderr
    assert "RETRODISTILL_CACHE" in run.stderr
    assert not list(tmp_path.iterdir())


def test_a_home_that_does_not_exist_is_one_line(call):
    status, _, error = call("mine", "--collection", "~no-such-user/x", "--source", "bm25", "--out", "mined.run")
    assert (status, "~no-such-user" in error) == (2, True)
