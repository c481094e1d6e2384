"""Several dense encoders as one: their vectors, their space, an index of them, and a student in it."""

from dataclasses import replace

import numpy as np
import pytest

import retrodistill as rd
from retrodistill.core.errors import UserError
from retrodistill.encoders import load_encoder
from retrodistill.encoders.any_encoder import DENSE
from retrodistill.encoders.concatenated import ConcatenatedEncoder
from retrodistill.encoders.embeddings import embed, seconds_to_embed
from retrodistill.encoders.names import ModelName, content_of, found_from, member_names, relative_to
from retrodistill.encoders.space import EmbeddingSpace
from retrodistill.objectives import registry
from retrodistill.objectives.embeddings import relation_matching
from retrodistill.objectives.registry import get_objective
from retrodistill.rankers.loading import load_ranker
from retrodistill.recipes.settings import Recipe, check_truncations

TEXTS = ["star planet", "bread", "court and judge"]


@pytest.fixture
def other_model(tiny_model, tmp_path):
    """The tiny model with other weights."""
    import torch

    model = load_encoder(f"dense:{tiny_model}").model
    torch.manual_seed(7)
    with torch.no_grad():
        for weights in model.parameters():
            weights.add_(0.3 * torch.randn_like(weights))
    model.save_pretrained(str(tmp_path / "other"))
    return str(tmp_path / "other")


@pytest.fixture
def name(tiny_model, other_model):
    return f"concat:dense:{tiny_model}+dense:{other_model}"


class TestVectors:
    def test_they_are_unit_vectors_whose_cosine_is_the_mean_of_the_members(self, name, tiny_model, other_model):
        encoder = load_encoder(name, DENSE)
        members = [load_encoder(f"dense:{each}") for each in (tiny_model, other_model)]
        found = encoder.encode(TEXTS, "query")
        assert (found.shape, encoder.dimension, encoder.kind) == ((3, 64), 64, "concat")
        cosines = [vectors @ vectors.T for vectors in (member.encode(TEXTS, "query") for member in members)]
        np.testing.assert_allclose(found @ found.T, sum(cosines) / 2, atol=1e-6)
        np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)

    def test_what_a_member_has_stored_is_not_encoded_again(self, name, tiny_model, monkeypatch):
        wanted, encoder = load_encoder(name, DENSE).encode(TEXTS, "document"), load_encoder(name, DENSE)
        for member in encoder.members:
            embed(member, TEXTS, "document")
            monkeypatch.setattr(member, "encode", None)
        np.testing.assert_allclose(embed(encoder, TEXTS, "document"), wanted, atol=1e-6)

    def test_stores_of_members_are_opened_once_to_embed_and_never_for_a_query(self, name, monkeypatch):
        from retrodistill.encoders import embeddings

        opened, whole = [], embeddings.store_of
        monkeypatch.setattr(embeddings, "store_of", lambda *given: opened.append(given[0].name) or whole(*given))
        monkeypatch.setattr(embeddings, "_PART", 1)  # texts
        encoder = load_encoder(name, DENSE)
        embed(encoder, TEXTS, "document")
        assert sorted(opened) == sorted([name, *(member.name for member in encoder.members)])
        encoder.encode(TEXTS, "query")
        assert len(opened) == 3

    def test_the_time_to_embed_is_that_of_the_members(self, name):
        count, seconds = seconds_to_embed(load_encoder(name, DENSE), TEXTS, "document")
        assert count == 3
        assert seconds > 0

    def test_members_may_be_vectors_of_a_collection(self, tiny, tiny_model, tmp_path):
        import pyarrow as pa
        import pyarrow.parquet as pq

        (tmp_path / "vectors").mkdir()
        vectors = np.random.default_rng(0).normal(size=(len(tiny.documents), 5)).astype("f4")
        table = pa.table({"_id": tiny.documents.ids, "vector": list(vectors)})
        pq.write_table(table, tmp_path / "vectors" / "documents.parquet")
        encoder = load_encoder(f"concat:dense:{tiny_model}+vectors:{tmp_path / 'vectors'}", DENSE).bind(tiny)
        unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        found = encoder.encode(tiny.documents.texts, "document")
        np.testing.assert_allclose(found[:, 32:] * np.sqrt(2), unit, atol=1e-5)
        assert encoder.is_recorded
        assert encoder.missing(["no such text"], "query").tolist() == [0]
        with pytest.raises(UserError, match=r"has no vectors for"):
            encoder.require(tiny.queries, "query")

    def test_it_scores_pairs_as_an_equal_ensemble(self, name, tiny, tiny_model, other_model):
        queries = tiny.split("test")
        rankers = [load_ranker(f"dense:{each}") for each in (tiny_model, other_model)]
        pairs = rankers[0].search(queries, tiny, 10)
        found = load_ranker(name).score(queries, tiny, pairs)
        wanted = sum(ranker.score(queries, tiny, pairs).scores for ranker in rankers) / 2
        np.testing.assert_allclose(found.scores, wanted, atol=1e-5)


class TestNames:
    def test_a_plus_in_a_name_stays(self):
        assert member_names("dense:a+b+vectors:c+static:d") == ["dense:a+b", "vectors:c", "static:d"]

    @pytest.mark.parametrize(
        ("members", "message"),
        [
            ("dense:{model}", "names 1 encoder; write concat:dense:A"),
            ("dense:{model}+sparse:x", r"^concat:dense:.*: 'sparse:x' is none of its members' kinds"),
            ("{model}+{model}", r"is none of its members' kinds \(dense, static, vectors, embeddings-api\)"),
            ("concat:dense:{model}+dense:{model}", r"'concat:dense:.*' is none of its members' kinds"),
            ("dense:{model}+dense:{model}", "names an encoder twice"),
            ("dense:{model}+dense:no/such/folder", "no/such/folder"),
        ],
    )
    def test_what_cannot_be_concatenated(self, members, message, tiny_model):
        with pytest.raises(UserError, match=message) as error:
            load_encoder(f"concat:{members.format(model=tiny_model)}", DENSE)
        assert "\n" not in str(error.value)

    def test_places_are_those_of_each_member(self, name, tiny_model, other_model, tmp_path, monkeypatch):
        folder = tmp_path / "index"
        folder.mkdir()
        written = relative_to(name, folder)
        assert str(tmp_path) not in written
        assert found_from(written, folder) == name
        monkeypatch.chdir(tmp_path)
        here = ModelName("concat", "dense:other+dense:all-MiniLM-L6-v2").anywhere
        assert str(here) == f"concat:dense:{tmp_path / 'other'}+dense:all-MiniLM-L6-v2"
        before = content_of(name)
        (tmp_path / "other" / "config_sentence_transformers.json").write_text("{}")
        assert before != content_of(name)
        assert content_of("concat:dense:hub/a+dense:hub/b") is None

    def test_products_are_not_cosines(self, tiny_model):
        members = [load_encoder(f"dense:{tiny_model}") for _ in range(2)]
        members[1].model.similarity_fn_name = "dot"
        with pytest.raises(UserError, match=r"compares by dot, and only vectors that compare by cosine"):
            ConcatenatedEncoder("concat:x", members)


class TestSpace:
    def test_order_and_members_are_its_space(self, name, tiny_model, other_model):
        encoder, same = load_encoder(name, DENSE), load_encoder(name, DENSE)
        turned = load_encoder(f"concat:dense:{other_model}+dense:{tiny_model}", DENSE)
        space = EmbeddingSpace.of(encoder)
        space.check_query_encoder(same)
        with pytest.raises(UserError, match=r"queries by concat:.* do not belong among documents"):
            space.check_query_encoder(turned)

    def test_its_leading_dimensions_are_those_of_the_first_member(self, name):
        with pytest.raises(UserError, match=r"leading dimensions of vectors by concat:.* leave truncation out"):
            EmbeddingSpace.of(load_encoder(name, DENSE), 16)
        recipe = {"name": "one", "document_encoder": name, "evaluation": {"truncations": [16]}, "students": {}}
        recipe["students"] = {"student": {"model": "static", "stages": [{"objectives": "leaf"}]}}
        with pytest.raises(UserError, match=r"^evaluation.truncations: leading dimensions of concat:"):
            check_truncations(Recipe.model_validate(recipe), 64)

    def test_teachers_are_dropped_only_where_there_are_several(self, name):
        recipe = {"name": "one", "document_encoder": name}
        recipe["students"] = {"student": {"model": "static", "stages": [{"objectives": "teacher-dropping"}]}}
        Recipe.model_validate(recipe)
        with pytest.raises(ValueError, match=r"teacher-dropping needs several teachers; set document_encoder to con"):
            Recipe.model_validate({**recipe, "document_encoder": "dense:all-MiniLM-L6-v2"})

    def test_a_student_learns_a_smaller_space_of_its_own(self, name, tiny_folder, tiny_model, tmp_path, monkeypatch):
        widths, relations = set(), get_objective("relations")

        def seen(student, teacher):
            widths.add((student.shape[1], teacher.shape[1]))
            return relation_matching(student, teacher)

        monkeypatch.setitem(registry._OBJECTIVES, "relations", replace(relations, function=seen))
        training = {"max_steps": 4, "batch_size": 8, "learning_rate": 1e-2}
        stage = {"objectives": ["relations", "triplets"], "training": training, "texts": {"sentences": 1}}
        student = {"model": f"dense:{tiny_model}", "dimension": 8, "documents": "student", "stages": [stage]}
        recipe = {"name": "smaller", "collection": str(tiny_folder), "document_encoder": name, "teacher": name}
        recipe["students"] = {"student": {**student, "control": None}}
        results = rd.run_recipe(Recipe.model_validate(recipe), tmp_path / "out")
        assert results.system("student").bytes_per_document == pytest.approx(8 * 4, abs=1)
        assert widths == {(8, 64)}
        monitors = results.curves["student"]["monitors"]
        assert monitors
        assert all(0 < measured["agreement"] <= 1 for measured in monitors)

    def test_an_index_a_student_and_a_smaller_dimension(self, name, tiny_folder, tiny_model, tmp_path):
        recipe = {
            "name": "one-index",
            "collection": str(tiny_folder),
            "document_encoder": name,
            "index": {"factory": "PCA16,Flat"},
            "evaluation": {"latency_queries": 0, "examples": 0},
            "students": {
                "student": {
                    "model": "static",
                    "initialize": "fitted",
                    "tokenizer": f"dense:{tiny_model}",
                    "stages": [{"objectives": "leaf", "training": {"max_steps": 3}}],
                }
            },
        }
        results = rd.run_recipe(Recipe.model_validate(recipe), tmp_path / "out")
        names = [system.name for system in results.systems]
        assert {"bm25", "teacher", "student"} <= set(names)
        student = load_encoder(f"static:{tmp_path / 'out' / 'students' / 'student'}")
        space = EmbeddingSpace.of(load_encoder(name, DENSE))
        space.check_query_encoder(student)
        assert student.dimension == space.dimension == 64
