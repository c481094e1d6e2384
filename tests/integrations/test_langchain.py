"""LangChain, as its users call it."""

import asyncio
import json

import numpy as np
import pytest

pytest.importorskip("langchain_core")
from langchain_core.documents import Document
from langchain_core.runnables import RunnableLambda
from langchain_core.vectorstores import InMemoryVectorStore

from retrodistill.core.errors import UserError
from retrodistill.encoders import load_encoder
from retrodistill.indexes import load_index
from retrodistill.integrations.langchain import RetrodistillEmbeddings, RetrodistillRetriever


@pytest.fixture(scope="module")
def retriever(folder):
    return RetrodistillRetriever(index=folder, k=3)


class TestRetriever:
    def test_invoke_gives_the_documents_of_a_search(self, retriever, folder, small):
        found = retriever.invoke("moon and star")
        wanted = load_index(folder).search("moon and star", k=3)
        assert all(isinstance(document, Document) for document in found)
        assert [document.id for document in found] == wanted.document_ids.tolist()
        assert [document.metadata["score"] for document in found] == wanted.scores.tolist()
        assert [document.page_content for document in found] == [small.bodies[document.id] for document in found]
        assert json.loads(json.dumps(found[0].metadata)) == found[0].metadata

    def test_every_way_to_call_it_gives_the_same(self, retriever):
        one, other = retriever.invoke("moon"), retriever.invoke("bread")
        assert retriever.batch(["moon", "bread"]) == [one, other]
        assert asyncio.run(retriever.ainvoke("moon")) == one
        assert asyncio.run(retriever.abatch(["moon", "bread"])) == [one, other]

    def test_k_and_filter_of_a_call_replace_the_retriever_s_own(self, folder):
        retriever = RetrodistillRetriever(index=folder, k=1, filter="lang=en")
        assert [document.metadata["lang"] for document in retriever.invoke("moon", k=5)] == ["en", "en"]
        assert [document.id for document in retriever.invoke("moon", filter={"lang": "fr"})] == ["d"]
        assert [each.id for each in asyncio.run(retriever.ainvoke("moon", k=5, filter={"lang": "fr"}))] == ["d"]

    def test_it_is_a_step_of_a_chain(self, retriever):
        chain = retriever | RunnableLambda(lambda documents: [document.metadata["id"] for document in documents])
        assert chain.invoke("moon") == [document.id for document in retriever.invoke("moon")]

    def test_a_mistake_is_a_user_error(self, retriever, without_texts):
        with pytest.raises(UserError, match="is empty"):
            retriever.invoke("")
        with pytest.raises(UserError, match="stores no texts"):
            RetrodistillRetriever(index=without_texts)


class TestEmbeddings:
    def test_each_side_has_its_encoder(self, teacher, student):
        embeddings = RetrodistillEmbeddings(teacher, student)
        np.testing.assert_array_equal(
            embeddings.embed_query("moon"), load_encoder(student).encode(["moon"], "query")[0]
        )
        np.testing.assert_array_equal(
            embeddings.embed_documents(["moon", "star"]), load_encoder(teacher).encode(["moon", "star"], "document")
        )
        assert embeddings.embed_documents([]) == []

    def test_a_role_has_its_prompt(self, tiny_model, tmp_path):
        from sentence_transformers import SentenceTransformer

        model = SentenceTransformer(tiny_model, prompts={"query": "what ", "document": "about "})
        model.save_pretrained(str(tmp_path / "prompted"), create_model_card=False)
        embeddings = RetrodistillEmbeddings(f"dense:{tmp_path / 'prompted'}")
        plain = SentenceTransformer(tiny_model)
        np.testing.assert_allclose(embeddings.embed_query("moon"), plain.encode("what moon"), atol=1e-6)
        np.testing.assert_allclose(embeddings.embed_documents(["moon"])[0], plain.encode("about moon"), atol=1e-6)

    def test_a_vector_store_finds_what_the_index_finds(self, folder, teacher, student, small):
        store = InMemoryVectorStore(RetrodistillEmbeddings(teacher, student))
        store.add_texts(small.documents.texts, ids=small.documents.ids)
        found = store.similarity_search_with_score("moon and star", k=5)
        assert {document.id: score for document, score in found} == pytest.approx(
            load_index(folder).search("moon and star", k=5).to_dict()["0"], abs=1e-5
        )

    def test_queries_of_another_space_are_refused(self, teacher, tiny_static):
        with pytest.raises(UserError, match="do not belong among documents"):
            RetrodistillEmbeddings(teacher, f"static:{tiny_static}")
        with pytest.raises(UserError, match="is empty"):
            RetrodistillEmbeddings(teacher).embed_query(" ")
