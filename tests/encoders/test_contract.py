import copy
import json

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Router
from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling, StaticEmbedding

from retrodistill.core.errors import UserError
from retrodistill.core.manifest import Manifest
from retrodistill.encoders import Encoder, load_encoder
from retrodistill.encoders.loading import load_bi_encoder
from retrodistill.encoders.space import EmbeddingSpace
from retrodistill.students import save_student


@pytest.fixture
def teacher(tiny_model):
    """An encoder whose roles have prompts of their own."""
    return load_encoder(prompted(tiny_model))


@pytest.fixture
def space(teacher):
    return EmbeddingSpace.of(teacher)


def prompted(folder, **others):
    model = load_bi_encoder(folder)
    model.prompts = {"query": "query: ", "document": "passage: ", **others}
    return model


def rebuilt(folder, *modules, similarity="cosine"):
    """A model of other modules with the teacher's prompts."""
    model = SentenceTransformer(modules=list(modules), similarity_fn_name=similarity, device="cpu")
    model.prompts = {"query": "query: ", "document": "passage: "}
    return load_encoder(model)


def by_part(queries, documents, **others):
    """A Router of two models' modules."""
    model = SentenceTransformer(modules=[Router({"query": queries, "document": documents}, **others)], device="cpu")
    model.prompts = {"query": "query: ", "document": "passage: "}
    return load_encoder(model)


class TestWhoIsAdmitted:
    def test_the_model_itself_loaded_again(self, space, tiny_model):
        space.check_query_encoder(load_encoder(prompted(tiny_model)))
        assert space.differences(load_encoder(prompted(tiny_model))) == []

    def test_a_student_whose_manifest_names_the_space(self, space, teacher, tiny_static, tmp_path):
        manifest = Manifest("student", about={"query_space": teacher.document_space})
        space.check_query_encoder(save_student(load_bi_encoder(tiny_static), manifest, tmp_path / "student"))

    def test_a_student_of_another_space_is_told_both(self, space, tiny_static):
        student = Encoder(load_bi_encoder(tiny_static), "static:s", Manifest("student", about={"query_space": "abc"}))
        with pytest.raises(UserError, match=rf"was distilled into space abc, the documents are in {space.fingerprint}"):
            space.check_query_encoder(student)

    def test_a_student_among_its_own_documents(self, tiny_static):
        student = Encoder(load_bi_encoder(tiny_static), "static:s", Manifest("student", about={"query_space": "abc"}))
        with pytest.raises(UserError, match=r"^static:s encodes queries only, for documents of another model; build"):
            EmbeddingSpace.of(student).check_query_encoder(student)

    def test_the_same_table_without_its_manifest(self, space, tiny_static):
        with pytest.raises(UserError, match=r"other weights; other modules"):
            space.check_query_encoder(load_encoder(load_bi_encoder(tiny_static)))


class TestWhatDiffers:
    """Every part of the contract keeps a model out by itself, and is named."""

    def refused(self, space, encoder):
        with pytest.raises(UserError) as caught:
            space.check_query_encoder(encoder)
        return str(caught.value)

    def test_weights(self, space, tiny_model):
        model = prompted(tiny_model)
        with torch.no_grad():
            next(iter(model.parameters())).view(-1)[0] += 1e-3
        assert space.differences(load_encoder(model)) == ["other weights"]
        assert "(other weights); use the encoder that made the documents" in self.refused(space, load_encoder(model))

    def test_pooling(self, space, tiny_model):
        first, _, last = load_bi_encoder(tiny_model)
        encoder = rebuilt(tiny_model, first, Pooling(32, "cls"), last)
        assert space.differences(encoder) == ["Pooling has pooling_mode 'cls', expected 'mean'"]

    def test_normalization(self, space, tiny_model):
        encoder = rebuilt(tiny_model, *list(load_bi_encoder(tiny_model))[:2])
        assert space.differences(encoder) == ["modules Transformer, Pooling, expected Transformer, Pooling, Normalize"]

    def test_document_prompt(self, space, tiny_model):
        encoder = load_encoder(prompted(tiny_model, document="text: "))
        assert space.differences(encoder) == ["prompt 'text: ', expected 'passage: '"]

    def test_maximum_length(self, space, tiny_model):
        model = prompted(tiny_model)
        model.max_seq_length = 16
        assert space.differences(load_encoder(model)) == ["max_length 16, expected 64"]

    def test_similarity(self, space, tiny_model):
        model = prompted(tiny_model)
        model.similarity_fn_name = "dot"
        assert space.differences(load_encoder(model)) == ["similarity 'dot', expected 'cosine'"]

    def test_dimension(self, space, tiny_model):
        encoder = rebuilt(tiny_model, *list(load_bi_encoder(tiny_model))[:2], Dense(32, 8))
        assert "have 8 dimensions, the documents by dense:" in self.refused(space, encoder)

    def test_truncation_by_the_model(self, space, tiny_model):
        model = prompted(tiny_model)
        model.truncate_dim = 16
        assert "have 16 dimensions (cut to 16), the documents by" in self.refused(space, load_encoder(model))
        whole = EmbeddingSpace.of(load_encoder(model))
        assert "have 32 dimensions, the documents" in self.refused(whole, load_encoder(prompted(tiny_model)))

    def test_truncation_against_a_model_that_is_as_narrow(self, tiny_model):
        cut, narrow = load_bi_encoder(tiny_model), load_bi_encoder(tiny_model)
        cut.truncate_dim = 8
        narrow = rebuilt(tiny_model, *list(narrow)[:2], Dense(32, 8))
        assert "truncation 8, expected None" in EmbeddingSpace.of(narrow).differences(load_encoder(cut))
        assert "truncation None, expected 8" in EmbeddingSpace.of(load_encoder(cut)).differences(narrow)

    def test_all_of_them_at_once_in_one_line(self, space, tiny_model):
        model = prompted(tiny_model, document="")
        model.max_seq_length = 16
        line = self.refused(space, load_encoder(model))
        assert "(prompt '', expected 'passage: '; max_length 16, expected 64)" in line
        assert "\n" not in line


class TestTheQueryPrompt:
    """It moves no document, but a model that asks with another one finds other neighbors."""

    def test_the_documents_lie_where_they_lay(self, space, tiny_model):
        assert load_encoder(prompted(tiny_model, query="what is ")).document_space == space.fingerprint

    def test_the_same_model_with_another_one_is_refused(self, space, tiny_model):
        with pytest.raises(
            UserError,
            match=r"is the model of these documents .*\(query prompt 'what is ', expected 'query: '\)",
        ):
            space.check_query_encoder(load_encoder(prompted(tiny_model, query="what is ")))

    def test_the_same_model_without_one_is_refused(self, space, tiny_model):
        assert space.differences(load_encoder(prompted(tiny_model, query=""))) == [
            "query prompt '', expected 'query: '"
        ]

    def test_a_student_asks_as_it_was_trained_to(self, space, teacher, tiny_static):
        student = load_bi_encoder(tiny_static)
        student.prompts = {"query": "find "}
        space.check_query_encoder(
            Encoder(student, "static:s", Manifest("student", about={"query_space": teacher.document_space}))
        )

    def test_a_space_that_was_kept_without_it_holds_nobody_to_it(self, space, tiny_model):
        content = space.to_json()
        del content["query_contract"]
        EmbeddingSpace.from_json(content).check_query_encoder(load_encoder(prompted(tiny_model, query="what is ")))


class TestTruncation:
    def test_it_is_part_of_the_contract_only_where_there_is_one(self, tiny_model):
        model = load_bi_encoder(tiny_model)
        assert "truncation" not in load_encoder(model).contract("document")
        model.truncate_dim = 16
        assert load_encoder(model).contract("document")["truncation"] == 16
        assert load_encoder(model).dimension == 16

    def test_keeping_everything_is_none(self, tiny_model):
        model = load_bi_encoder(tiny_model)
        whole = load_encoder(model).document_space
        for width in (32, 64):
            model.truncate_dim = width
            assert load_encoder(model).truncation is None
            assert load_encoder(model).document_space == whole

    @pytest.mark.parametrize("fixture", ["tiny_model", "tiny_static"])
    def test_vectors_are_cut_and_unit_again(self, fixture, request):
        model = load_bi_encoder(request.getfixturevalue(fixture))
        whole = load_encoder(model).encode(["star planet", "violin"], "query")
        model.truncate_dim = 16
        cut = load_encoder(model).encode(["star planet", "violin"], "query")
        expected = whole[:, :16] / np.linalg.norm(whole[:, :16], axis=1, keepdims=True)
        np.testing.assert_allclose(cut, expected, atol=1e-5)

    def test_a_token_table_that_reads_less_is_another_space(self, tiny_static):
        table, normalise = load_bi_encoder(tiny_static)
        whole = rebuilt(tiny_static, table, normalise)
        assert whole.contract("document")["max_length"] is None
        space = EmbeddingSpace.of(whole)
        tokenizer = copy.deepcopy(table.tokenizer)
        tokenizer.enable_truncation(4)
        short = StaticEmbedding(tokenizer, embedding_weights=table.embedding.weight.detach().clone())
        assert space.differences(rebuilt(tiny_static, short, normalise)) == ["max_length 4, expected None"]


class TestRouters:
    def test_documents_that_go_through_a_models_modules_lie_in_its_space(self, space, tiny_model, tiny_static):
        pair = by_part(list(load_bi_encoder(tiny_static)), list(load_bi_encoder(tiny_model)))
        assert pair.document_space == space.fingerprint
        assert pair.fingerprint("query") != space.fingerprint

    def test_its_query_tower_is_for_those_documents(self, space, tiny_model, tiny_static):
        pair = by_part(list(load_bi_encoder(tiny_static)), list(load_bi_encoder(tiny_model)))
        space.check_query_encoder(pair)
        EmbeddingSpace.of(pair).check_query_encoder(pair)
        EmbeddingSpace.of(pair).check_query_encoder(load_encoder(prompted(tiny_model)))

    def test_another_document_tower_is_refused(self, space, tiny_model, tiny_static):
        pair = by_part(list(load_bi_encoder(tiny_model)), list(load_bi_encoder(tiny_static)))
        assert space.differences(pair)[:2] == ["other weights", "other modules"]

    def test_one_tower_for_both_is_held_to_the_query_prompt(self, space, tiny_model):
        tower = list(load_bi_encoder(tiny_model))
        same = by_part(tower, tower)
        space.check_query_encoder(same)
        same.model.prompts = {"query": "what ", "document": "passage: "}
        assert space.differences(same) == ["query prompt 'what ', expected 'query: '"]

    def test_what_follows_the_router_counts(self, tiny_model, tiny_static):
        train = [list(load_bi_encoder(folder))[:-1] for folder in (tiny_static, tiny_model)]
        model = SentenceTransformer(modules=[Router.for_query_document(*train), Normalize()], device="cpu")
        assert load_encoder(model).document_space == load_encoder(load_bi_encoder(tiny_model)).document_space

    def test_routes_by_a_mapping(self, tiny_model, tiny_static):
        train = {"q": list(load_bi_encoder(tiny_static)), "d": list(load_bi_encoder(tiny_model))}
        routes = {("query", "text"): "q", ("document", None): "d"}
        encoder = load_encoder(SentenceTransformer(modules=[Router(train, route_mappings=routes)], device="cpu"))
        assert encoder.document_space == load_encoder(load_bi_encoder(tiny_model)).document_space
        assert [type(one).__name__ for one in encoder.modules("query")] == ["StaticEmbedding", "Normalize"]
        words = ["star planet"]
        np.testing.assert_allclose(
            encoder.encode(words, "query"), load_bi_encoder(tiny_static).encode(words), atol=1e-6
        )

    def test_a_router_that_does_not_know_the_role(self, tiny_model):
        model = SentenceTransformer(modules=[Router({"left": list(load_bi_encoder(tiny_model))})], device="cpu")
        with pytest.raises(
            UserError, match=r"has no route for a document \(routes: left\); a Router needs 'query' and"
        ):
            EmbeddingSpace.of(load_encoder(model))


class TestTheSpaceOnDisk:
    def test_it_comes_back_and_refuses_alike(self, space, tiny_model):
        again = EmbeddingSpace.from_json(json.loads(json.dumps(space.to_json())))
        assert again == space
        assert (again.contract, again.query_contract) == (space.contract, space.query_contract)
        other = load_encoder(prompted(tiny_model, document="text: ", query="what "))
        assert again.differences(other) == space.differences(other) == ["prompt 'text: ', expected 'passage: '"]

    def test_it_says_what_norm_vectors_have(self, space):
        assert space.to_json()["norm"] == "unit"

    @pytest.mark.parametrize("key", ["fingerprint", "dimension", "similarity", "documents_by"])
    def test_one_that_lacks_something(self, space, key):
        content = space.to_json()
        del content[key]
        with pytest.raises(UserError, match=rf"^the manifest's space lacks '{key}'; build the index again.$"):
            EmbeddingSpace.from_json(content)

    def test_one_of_a_later_version(self, space):
        with pytest.raises(UserError, match=r"^the manifest's space has 'curvature', which this version does not"):
            EmbeddingSpace.from_json({**space.to_json(), "curvature": -1})

    @pytest.mark.parametrize("width", [0, 33])
    def test_a_truncation_that_is_no_part_of_the_vector(self, teacher, width):
        with pytest.raises(UserError, match=rf"^truncation to {width} dimensions: .* have 32; choose from 1 to 32.$"):
            EmbeddingSpace.of(teacher, width)
