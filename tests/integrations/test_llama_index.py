"""LlamaIndex, as its users call it."""

import asyncio

import numpy as np
import pytest

pytest.importorskip("llama_index.core")
from llama_index.core import Document, VectorStoreIndex
from llama_index.core.llms import MockLLM
from llama_index.core.postprocessor import SimilarityPostprocessor
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.response_synthesizers import get_response_synthesizer
from llama_index.core.schema import MetadataMode, NodeWithScore

from retrodistill.core.errors import UserError
from retrodistill.encoders import load_encoder
from retrodistill.indexes import load_index
from retrodistill.integrations.llama_index import RetrodistillEmbedding, RetrodistillRetriever


@pytest.fixture(scope="module")
def retriever(folder):
    return RetrodistillRetriever(folder, similarity_top_k=3)


class TestRetriever:
    def test_retrieve_gives_the_documents_of_a_search(self, retriever, folder, small):
        found = retriever.retrieve("moon and star")
        wanted = load_index(folder).search("moon and star", k=3)
        assert all(isinstance(node, NodeWithScore) for node in found)
        assert [node.node_id for node in found] == wanted.document_ids.tolist()
        assert [node.score for node in found] == wanted.scores.tolist()
        assert [node.text for node in found] == [small.bodies[node.node_id] for node in found]
        assert asyncio.run(retriever.aretrieve("moon and star")) == found

    def test_a_model_reads_title_and_fields_but_no_score(self, folder):
        (found,) = RetrodistillRetriever(folder, similarity_top_k=1, filter="lang=de").retrieve("moon")
        assert found.metadata["score"] == found.score
        said = found.node.get_content(MetadataMode.LLM)
        assert "title: star" in said
        assert "year: 2020" in said
        assert "score" not in said

    def test_a_query_engine_and_a_postprocessor_take_it(self, retriever):
        engine = RetrieverQueryEngine(
            retriever,
            get_response_synthesizer(MockLLM()),
            node_postprocessors=[SimilarityPostprocessor(similarity_cutoff=-2.0)],
        )
        assert [node.node_id for node in engine.query("moon").source_nodes] == [
            node.node_id for node in retriever.retrieve("moon")
        ]

    def test_a_mistake_is_a_user_error(self, retriever, without_texts):
        with pytest.raises(UserError, match="is empty"):
            retriever.retrieve("")
        with pytest.raises(UserError, match="stores no texts"):
            RetrodistillRetriever(without_texts)


class TestEmbedding:
    def test_each_side_has_its_encoder(self, teacher, student):
        embedding = RetrodistillEmbedding(teacher, student)
        query, texts = load_encoder(student).encode(["moon"], "query")[0], ["moon", "star"]
        documents = load_encoder(teacher).encode(texts, "document")
        np.testing.assert_array_equal(embedding.get_query_embedding("moon"), query)
        np.testing.assert_allclose(embedding.get_text_embedding_batch(texts), documents, atol=1e-6)
        np.testing.assert_allclose(embedding.get_text_embedding("star"), documents[1], atol=1e-6)
        np.testing.assert_array_equal(asyncio.run(embedding.aget_query_embedding("moon")), query)
        np.testing.assert_allclose(asyncio.run(embedding.aget_text_embedding_batch(texts)), documents, atol=1e-6)
        np.testing.assert_allclose(asyncio.run(embedding.aget_text_embedding("star")), documents[1], atol=1e-6)

    def test_an_index_of_llama_index_finds_what_the_index_finds(self, folder, teacher, student, small):
        documents = [Document(text=small.documents[id_], id_=id_) for id_ in small.documents.ids]
        index = VectorStoreIndex.from_documents(
            documents, embed_model=RetrodistillEmbedding(teacher, student), transformations=[]
        )
        found = index.as_retriever(similarity_top_k=5).retrieve("moon and star")
        assert {node.node.ref_doc_id or node.node_id: node.score for node in found} == pytest.approx(
            load_index(folder).search("moon and star", k=5).to_dict()["0"], abs=1e-5
        )

    def test_queries_of_another_space_are_refused(self, teacher, tiny_static):
        with pytest.raises(UserError, match="do not belong among documents"):
            RetrodistillEmbedding(teacher, f"static:{tiny_static}")
