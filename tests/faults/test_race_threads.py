"""32 threads that use one index, encoder, store or ranker at once get what one thread gets."""

import random
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from retrodistill.core.errors import UserError
from retrodistill.data import load_collection
from retrodistill.data.texts import Texts
from retrodistill.encoders import load_encoder
from retrodistill.encoders.embeddings import embed, store_of
from retrodistill.indexes import build_index, load_index
from retrodistill.rankers import load_ranker
from retrodistill.students import load_student

SAVED = Path(__file__).parents[1] / "fixtures" / "saved_at_0.1.0"
THREADS, CALLS = 32, 4
STUDENTS = {"faiss": "hybrid", "inverted": "sparse", "multi-vector": "multi-vector"}
OPTIONS = {
    "flat": ("faiss", {}),
    "ivf": ("faiss", {"factory": "IVF4,Flat", "parameters": "nprobe=2"}),
    "hnsw": ("faiss", {"factory": "HNSW8"}),
    "pq": ("faiss", {"factory": "OPQ4,IVF2,PQ4x4"}),
    "fast scan": ("faiss", {"factory": "PQ4x4fs"}),
    "refined": ("faiss", {"factory": "SQ4,RFlat", "parameters": "k_factor_rf=2"}),
    "8 bits": ("inverted", {}),
    "exact weights": ("inverted", {"bits": 32}),
    "float16": ("multi-vector", {}),
    "float32": ("multi-vector", {"codec": "float32"}),
    "residual": ("multi-vector", {"codec": "residual", "centroids": 8}),
    "muvera": ("multi-vector", {"muvera": True}),
}


@pytest.fixture(scope="module")
def words():
    lines = (SAVED / "collection" / "corpus.jsonl").read_text().split('"')
    return sorted({word for line in lines for word in line.split() if word.isalpha()})


@pytest.fixture(scope="module")
def queries(words):
    drawn = random.Random(1)
    return [" ".join(drawn.choices(words, k=drawn.randint(1, 12))) for _ in range(40)]


@pytest.fixture(scope="module")
def corpus(words, tmp_path_factory):
    """300 documents of random words, with a field."""
    drawn, folder = random.Random(0), tmp_path_factory.mktemp("corpus")
    rows = [
        f'{{"_id": "d{row}", "text": "{" ".join(drawn.choices(words, k=drawn.randint(3, 20)))}", "year": {row % 7}}}'
        for row in range(300)
    ]
    (folder / "corpus.jsonl").write_text("\n".join(rows) + "\n")
    (folder / "queries.jsonl").write_text('{"_id": "q", "text": "heart"}\n')
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RETRODISTILL_CACHE", str(folder / "cache"))
        yield load_collection(folder)


@pytest.fixture(scope="module")
def saved_index(corpus, tmp_path_factory):
    """The folder of an index, by its name in `OPTIONS`."""
    place, made = tmp_path_factory.mktemp("indexes"), {}

    def save(name):
        kind, options = OPTIONS[name]
        if name not in made:
            made[name] = place / name
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("RETRODISTILL_CACHE", str(place / "cache"))
                build_index(corpus, load_student(SAVED / STUDENTS[kind]), **options).save(made[name])
        return made[name], load_student(SAVED / STUDENTS[kind])

    return save


@pytest.fixture(autouse=True)
def _switch_often():
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


def at_once(call, arguments):
    """What `call` gives of each argument, in 32 threads that begin together, each with all arguments in its order."""
    barrier = threading.Barrier(THREADS)

    def work(thread):
        order = list(range(len(arguments)))
        random.Random(thread).shuffle(order)
        barrier.wait()
        return [(place, call(arguments[place])) for place in order]

    with ThreadPoolExecutor(THREADS) as pool:
        return [found for each in pool.map(work, range(THREADS)) for found in each]


def rows(vectors):
    """The vectors of one text as an array, whatever the kind."""
    if hasattr(vectors, "bounds"):
        return vectors[0]
    return vectors.toarray() if hasattr(vectors, "toarray") else np.asarray(vectors)


def check_same(fresh, call, arguments):
    """Of a fresh object, as threads load what is made on first use at the same time."""
    expected = [call(fresh())(argument) for argument in arguments]
    together = fresh()
    for place, found in at_once(call(together), arguments):
        assert found == expected[place]


class TestIndexes:
    @pytest.mark.slow
    @pytest.mark.parametrize("memory_map", [False, True])
    @pytest.mark.parametrize("name", OPTIONS)
    def test_threads_find_what_one_finds(self, name, memory_map, saved_index, queries):
        folder, student = saved_index(name)

        def search(index):
            filters = [None, {"year": {">=": 5}}, {"year": 3}]
            return lambda number: index.search(queries[number], k=5, filter=filters[number % 3]).to_dict()

        check_same(lambda: load_index(folder, student, memory_map=memory_map), search, range(CALLS * 3))

    def test_threads_search_by_vectors_in_blocks(self, saved_index, queries):
        folder, student = saved_index("flat")
        vectors = student.encode(queries, "query")

        def search(index):
            return lambda start: index.search_vectors(vectors[start : start + 20], 7).to_dict()

        check_same(lambda: load_index(folder, student), search, [0, 7, 20])


class TestEncoders:
    @pytest.mark.slow
    @pytest.mark.parametrize("role", ["query", "document"])
    @pytest.mark.parametrize("name", ["static", "hybrid", "sparse", "vdr", "multi-vector", "pooled"])
    def test_threads_encode_as_one_does(self, name, role, queries):
        def encode(student):
            return lambda text: rows(student.encode([text], role)).tolist()

        check_same(lambda: load_student(SAVED / name), encode, queries[:CALLS])

    @pytest.mark.slow
    @pytest.mark.parametrize("name", ["prett", "tk"])
    def test_threads_score_pairs_as_one_does(self, name, queries):
        def score(student):
            return lambda text: student.score([(text, queries[0]), (queries[1], text)]).tolist()

        check_same(lambda: load_student(SAVED / name), score, queries[:CALLS])

    def test_texts_of_both_roles_are_cut_to_their_own_length(self, queries):
        """The library sets the length on the tokenizer, for each call."""

        def load():
            student = load_student(SAVED / "multi-vector")
            student.model[0].query_length = 8
            return student

        def encode(student):
            return lambda given: rows(student.encode([given[0]], given[1])).tolist()

        texts = [" ".join(queries[start : start + 4]) for start in range(0, 12, 4)]
        check_same(load, encode, [(text, role) for text in texts for role in ("query", "document")] * 3)


class TestChanges:
    @pytest.mark.slow
    @pytest.mark.parametrize("name", ["flat", "ivf", "8 bits", "float16", "muvera"])
    def test_searches_find_the_documents_before_or_after_a_change(self, name, saved_index, corpus, queries):
        folder, student = saved_index(name)
        index, documents = load_index(folder, student), corpus.documents
        changed = load_index(folder, student)
        moved, kept = documents.ids[:60], documents.ids[60:]
        vectors = student.encode([documents[id_] for id_ in moved], "document")
        expected = [changed.search(queries[:8], k=5).to_dict()]
        changed.remove(moved)
        expected.append(changed.search(queries[:8], k=5).to_dict())
        changed.add_vectors(moved, vectors, {id_: {"year": 1} for id_ in moved})
        expected.append(changed.search(queries[:8], k=5).to_dict())
        is_over, errors = threading.Event(), []

        def change():
            try:
                for _ in range(6):
                    index.remove(moved)
                    index.add_vectors(moved, vectors, {id_: {"year": 1} for id_ in moved})
            except Exception as error:
                errors.append(error)
            is_over.set()

        def search(_):
            found = []
            while not is_over.is_set():
                found.append(index.search(queries[:8], k=5).to_dict())
            return found

        changer = threading.Thread(target=change)
        with ThreadPoolExecutor(THREADS) as pool:
            answers = pool.map(search, range(THREADS))
            changer.start()
            answers = [found for each in answers for found in each]
        changer.join()
        assert not errors
        assert all(found in expected for found in answers)
        assert sorted(index.ids) == sorted([*moved, *kept])

    def test_an_id_that_many_threads_add_is_added_once(self, saved_index, queries):
        folder, student = saved_index("flat")
        index, vectors = load_index(folder, student), student.encode(queries[:1], "document")

        def add(_):
            try:
                index.add_vectors(["new"], vectors)
            except UserError as error:
                return str(error)
            return ""

        refused = [said for _, said in at_once(add, [0]) if said]
        assert (index.ids.count("new"), len(refused)) == (1, THREADS - 1)
        assert all("in the index already" in said for said in refused)


class TestStores:
    def test_threads_that_fill_one_store_read_the_same_vectors(self, corpus, tmp_path):
        encoder, texts = load_encoder(f"dense:{SAVED / 'hybrid'}"), corpus.documents.texts[:113]
        expected = encoder.encode(texts, "document")
        slices = [slice(start, start + 50) for start in range(0, 70, 7)]
        for place, found in at_once(lambda part: embed(encoder, texts[part], "document", tmp_path), slices):
            np.testing.assert_allclose(found, expected[slices[place]], atol=1e-6)
        assert not store_of(encoder, "document", tmp_path).missing(texts)


class TestRankers:
    def test_threads_search_with_bm25_as_one_does(self, corpus, queries):
        def search(ranker):
            def found(text):

                return ranker.search(Texts.from_pairs([("q", text)]), corpus, 5).to_dict()

            return found

        check_same(lambda: load_ranker("bm25"), search, queries[:CALLS])
