"""The Ray engine on a cluster of two workers, which one start of Ray and of its actors serves."""

import contextlib
import os
import shutil
import uuid

import numpy as np
import pytest
from store_children import PART, ROOT, TEXTS, FakeTask, Log, SentStore, fake_vector, kill_after, start

from retrodistill import cli
from retrodistill.core import ray_engine
from retrodistill.core.engines import Computation
from retrodistill.core.errors import UserError
from retrodistill.encoders import Encoder, embeddings, engine, load_encoder
from retrodistill.encoders.contract import encode_with
from retrodistill.encoders.embeddings import EmbeddingStore, seconds_to_embed, store_of
from retrodistill.rankers import score
from retrodistill.runs import Run, read_run, write_run

ray = pytest.importorskip("ray", reason="the ray extra is not installed")
pytestmark = [pytest.mark.xdist_group("ray"), pytest.mark.slow]

WANTED = np.stack([fake_vector(text) for text in TEXTS])
CHILD = """
    from retrodistill.core.engines import engine
    from retrodistill.encoders import embeddings
    embeddings._PART = PART
    root, log, address = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
    with engine("ray", address=address):
        SentStore(FakeTask(log, 0.02), root).fill(TEXTS)
"""


@pytest.fixture(scope="module")
def cluster():
    """Address of a cluster of two cores, to which this process is connected."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_AUTH_TOKEN", uuid.uuid4().hex)  # otherwise Ray writes one into the user's home
        patch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(ROOT / "tests")]))  # of the workers
        ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
        yield ray.get_runtime_context().gcs_address
        ray.shutdown()
        os.environ.pop("RAY_AUTH_MODE", None)  # Ray sets it


@pytest.fixture(scope="module")
def workers(cluster):
    """The engine of the whole module."""
    with engine("ray") as opened:
        yield opened


@pytest.fixture
def small_parts(monkeypatch):
    monkeypatch.setattr(embeddings, "_PART", PART)


def contents(root):
    """Number and bytes of each part."""
    return [(path.name.split("-")[1], path.read_bytes()) for path in sorted(root.rglob("part-*"))]


class TestStores:
    @pytest.mark.parametrize("settings", [{}, {"batch_size": 7, "precision": "bfloat16"}], ids=["default", "settings"])
    @pytest.mark.parametrize("kind", ["dense", "multi-vector"])
    def test_have_the_bytes_of_one_process(
        self, workers, small_parts, tiny, tiny_model, tiny_tokens, tmp_path, kind, settings
    ):
        name = f"dense:{tiny_model}"
        if kind == "multi-vector":
            tiny_tokens.save_pretrained(str(tmp_path / "tokens"), create_model_card=False)
            name = f"multi-vector:{tmp_path / 'tokens'}"
        with encode_with(**settings):
            encoder = load_encoder(name)
        for role, texts in (("document", tiny.documents.texts), ("query", tiny.queries.texts)):
            with engine("local"):
                store_of(encoder, role, tmp_path / "one").fill(texts)
            store_of(encoder, role, tmp_path / "ray").fill(texts)
        assert len(contents(tmp_path / "ray")) == 8
        assert contents(tmp_path / "ray") == contents(tmp_path / "one")

    def test_of_scores_too(self, workers, small_parts, tiny, tiny_cross_encoder, tmp_path):
        pairs = Run.from_dict({query: dict.fromkeys(tiny.documents.ids[:9], 0.0) for query in tiny.queries.ids[:8]})
        name = f"cross-encoder:{tiny_cross_encoder}"
        with engine("local"):
            one = score(tiny, pairs, [name], store=tmp_path / "one")
        assert score(tiny, pairs, [name], store=tmp_path / "ray")[0].to_dict() == one[0].to_dict()
        assert len(contents(tmp_path / "ray")) == 5
        assert contents(tmp_path / "ray") == contents(tmp_path / "one")

    def test_of_a_model_that_has_no_name_are_filled_here(self, workers, tiny, tiny_model, tmp_path):
        encoder = load_encoder(load_encoder(f"dense:{tiny_model}").model)
        store = EmbeddingStore(encoder, "document", tmp_path)
        store.fill(tiny.documents.texts)
        np.testing.assert_array_equal(
            store.gather(tiny.documents.texts), encoder.encode(tiny.documents.texts, "document")
        )

    def test_of_texts_that_change_hold_each_vector_under_its_own_text(self, workers, small_parts, tmp_path):
        class Changing(list):
            def __getitem__(self, row):
                return f"{super().__getitem__(row)} changed" if row % 3 == 0 else super().__getitem__(row)

        store = SentStore(FakeTask(str(tmp_path / "log")), tmp_path)
        store.fill(Changing(TEXTS))
        kept = [f"{text} changed" if row % 3 == 0 else text for row, text in enumerate(TEXTS)]
        np.testing.assert_array_equal(store.gather(kept), [fake_vector(text) for text in kept])
        assert store.missing(TEXTS) == TEXTS[::3]

    def test_a_rate_is_that_of_a_worker(self, workers, tiny_model, tmp_path, monkeypatch):
        encoder = load_encoder(f"dense:{tiny_model}")
        monkeypatch.setattr(Encoder, "encode", lambda *_, **__: pytest.fail("encoded here"))
        items, seconds = seconds_to_embed(encoder, TEXTS, "document", tmp_path)
        assert items == len(TEXTS)
        assert seconds > 0


class TestOrder:
    def test_results_keep_it_and_few_parts_are_taken_before_they_are_asked_for(self, workers, tmp_path):
        taken = []

        def parts():
            for number in range(60):
                taken.append(number)
                yield [TEXTS[number]]

        task = FakeTask(str(tmp_path / "log"), 0.005)
        for number, (part, vectors) in enumerate(workers.map(parts(), Computation(None, task))):
            assert part == [TEXTS[number]]
            np.testing.assert_array_equal(vectors, WANTED[[number]])
            assert len(taken) - number <= 2 * ray_engine._WINDOW + 1

    def test_nothing_to_do(self, workers):
        assert list(workers.map(iter([]), Computation(None, FakeTask("log")))) == []


class TestRefusals:
    @pytest.fixture
    def copied(self, tiny_model, tmp_path):
        return shutil.copytree(tiny_model, tmp_path / "model")

    def test_a_worker_without_the_model(self, workers, copied, tmp_path):
        store = EmbeddingStore(load_encoder(f"dense:{copied}"), "document", tmp_path / "store")
        shutil.rmtree(copied)
        with pytest.raises(UserError, match=rf"Ray worker on \S+: no model folder {copied}"):
            store.fill(TEXTS)
        assert contents(tmp_path / "store") == []

    def test_a_worker_with_another_model(self, workers, copied, tiny_model, tmp_path):
        encoder = load_encoder(f"dense:{copied}")
        changed = load_encoder(f"dense:{tiny_model}").model
        changed[0].max_seq_length = 7
        changed.save_pretrained(str(copied), create_model_card=False)
        with pytest.raises(UserError, match=r"Ray worker on \S+: dense:\S+ is another model here") as caught:
            EmbeddingStore(encoder, "document", tmp_path / "store").fill(TEXTS)
        assert "\n" not in str(caught.value)

    def test_what_a_worker_refuses_is_said_as_it_is(self, workers, tiny, tiny_model, tmp_path):
        import torch

        broken = load_encoder(f"dense:{tiny_model}").model
        with torch.no_grad():
            broken[0].auto_model.embeddings.word_embeddings.weight.fill_(torch.nan)
        broken.save_pretrained(str(tmp_path / "broken"), create_model_card=False)
        encoder = load_encoder(f"dense:{tmp_path / 'broken'}")
        with pytest.raises(UserError, match=r"^model dense:\S+ gives a vector that is not finite for") as caught:
            EmbeddingStore(encoder, "document", tmp_path / "store").fill(tiny.documents.texts)
        assert "\n" not in str(caught.value)

    def test_a_full_disk_keeps_the_parts_before(self, workers, small_parts, tmp_path, monkeypatch):
        task = FakeTask(str(tmp_path / "log"))
        synced = []

        def fsync(descriptor):
            synced.append(descriptor)
            if len(synced) > 4:  # the manifest, and three parts
                raise OSError(28, "No space left on device")

        store = SentStore(task, tmp_path)
        with monkeypatch.context() as patch:
            patch.setattr("retrodistill.core.files.os.fsync", fsync)
            with pytest.raises(UserError, match=r"cannot write .*part-000003.*no space left"):
                store.fill(TEXTS)
        assert len(store._store.parts()) == 3
        store.fill(TEXTS)
        np.testing.assert_array_equal(store.gather(TEXTS), WANTED)

    def test_an_address_that_does_not_answer(self, monkeypatch):
        monkeypatch.setattr(ray, "is_initialized", lambda: False)
        monkeypatch.setattr(ray_engine, "_CONNECT_SECONDS", 0.2)
        for address in ("127.0.0.1:9", "ray://127.0.0.1:9"):
            with (
                pytest.raises(UserError, match=f"no Ray cluster at {address} .no answer"),
                engine("ray", address=address),
            ):
                pass

    def test_an_address_where_there_is_a_connection(self, cluster):
        with pytest.raises(UserError, match="connected to Ray already"), engine("ray", address=cluster):
            pass

    def test_an_address_without_ray_or_another_engine(self):
        with pytest.raises(UserError, match="is for the engine ray"), engine(address="auto"):
            pass
        with pytest.raises(UserError, match="unknown engine 'spark'"), engine("spark"):
            pass


class TestCommands:
    def test_score_on_ray(self, workers, tiny, tiny_folder, tiny_model, tmp_path, monkeypatch):
        pairs = Run.from_dict({query: dict.fromkeys(tiny.documents.ids[:5], 0.0) for query in tiny.queries.ids[:4]})
        write_run(pairs, tmp_path / "pool.run")
        name, given = f"dense:{tiny_model}", []

        @contextlib.contextmanager
        def open_ray(address):
            given.append(address)
            yield workers

        with engine("local"):
            wanted = score(tiny, pairs, [name], store=tmp_path / "one")[0]
        monkeypatch.setattr(ray_engine, "open_ray", open_ray)
        monkeypatch.setattr(Encoder, "encode", lambda *_, **__: pytest.fail("encoded here"))
        command = ["score", "--collection", tiny_folder, "--candidates", tmp_path / "pool.run", "--teacher", name]
        command += ["--out", tmp_path / "scored.run", "--engine", "ray", "--address", "head:6379"]
        with pytest.raises(SystemExit) as ended:
            cli.main([str(word) for word in command])
        assert not ended.value.code
        assert given == ["head:6379"]
        assert read_run(tmp_path / "scored.run").to_dict() == wanted.to_dict()


class TestKill:
    def test_of_a_worker_sends_its_parts_to_another(self, workers, small_parts, tmp_path):
        log, marker = Log(tmp_path / "log"), tmp_path / "marker"
        before = set(workers.actors)
        store = SentStore(FakeTask(str(log.path), dies_at=TEXTS[150], marker=str(marker)), tmp_path)
        store.fill(TEXTS)
        assert marker.exists()
        assert len(before - workers.actors) == 1
        np.testing.assert_array_equal(store.gather(TEXTS), WANTED)
        assert sum(len(part) for part in store._store.parts()) == len(TEXTS)
        assert set(log.counts()) == set(TEXTS)

    def test_of_every_worker_by_one_part_ends_with_the_parts_before(self, workers, small_parts, tmp_path):
        task = FakeTask(str(tmp_path / "log"), dies_at=TEXTS[150])
        store = SentStore(task, tmp_path)
        with pytest.raises(UserError, match="3 Ray workers died with the same part"):
            store.fill(TEXTS)
        assert TEXTS[150] in SentStore(task, tmp_path).missing(TEXTS)

    def test_of_the_writer_keeps_its_parts_and_another_computes_the_rest_once(
        self, workers, cluster, small_parts, tmp_path
    ):
        log = Log(tmp_path / "log")
        workers.close()  # the child needs the cores
        kill_after(start(CHILD, tmp_path, log.path, cluster), log, 100)
        rest = FakeTask(str(tmp_path / "rest"))
        store = SentStore(rest, tmp_path)
        missing = store.missing(TEXTS)
        assert 0 < len(missing) < len(TEXTS)
        store.fill(TEXTS)
        assert Log(tmp_path / "rest").counts() == dict.fromkeys(missing, 1)
        np.testing.assert_array_equal(store.gather(TEXTS), WANTED)
