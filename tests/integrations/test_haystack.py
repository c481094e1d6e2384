"""Haystack, as its users call it."""

import pytest

pytest.importorskip("haystack")
from haystack import Document, Pipeline
from haystack.components.builders import PromptBuilder
from haystack.components.joiners import DocumentJoiner
from haystack.document_stores.in_memory import InMemoryDocumentStore
from haystack.telemetry import _telemetry

from retrodistill.core.errors import UserError
from retrodistill.indexes import load_index
from retrodistill.integrations.haystack import RetrodistillRetriever

FILTERS = [
    {"field": "meta.year", "operator": ">=", "value": 2020},
    {"field": "meta.lang", "operator": "==", "value": "en"},
    {"field": "lang", "operator": "in", "value": ["en", "fr"]},
    {"field": "id", "operator": "in", "value": ["a", "e"]},
    {"field": "meta.day", "operator": "<", "value": "2020-01-01"},
    {"field": "meta.year", "operator": "==", "value": None},
    {"field": "meta.year", "operator": "!=", "value": None},
    {
        "operator": "AND",
        "conditions": [
            {"field": "meta.year", "operator": ">", "value": 2019},
            {"field": "meta.year", "operator": "<", "value": 2022},
            {
                "operator": "OR",
                "conditions": [
                    {"field": "meta.lang", "operator": "==", "value": "de"},
                    {"field": "meta.lang", "operator": "==", "value": "fr"},
                ],
            },
        ],
    },
]


@pytest.fixture
def pipeline(folder):
    made = Pipeline()
    made.add_component("retriever", RetrodistillRetriever(folder, top_k=3))
    made.add_component("prompt", PromptBuilder("{% for each in documents %}{{ each.meta.title }};{% endfor %}"))
    made.connect("retriever.documents", "prompt.documents")
    return made


class TestPipeline:
    def test_a_run_gives_the_documents_of_a_search(self, pipeline, folder, small):
        found = pipeline.run({"retriever": {"query": "moon and star"}}, include_outputs_from={"retriever"})
        documents = found["retriever"]["documents"]
        wanted = load_index(folder).search("moon and star", k=3)
        assert all(isinstance(document, Document) for document in documents)
        assert [document.id for document in documents] == wanted.document_ids.tolist()
        assert [document.score for document in documents] == wanted.scores.tolist()
        assert [document.content for document in documents] == [small.bodies[document.id] for document in documents]
        titles = [document.meta.get("title", "") for document in documents]
        assert found["prompt"]["prompt"] == "".join(f"{title};" for title in titles)

    def test_dumped_and_loaded_it_gives_the_same(self, pipeline):
        loaded = Pipeline.loads(pipeline.dumps(), allowed_modules=["retrodistill.integrations.haystack"])
        assert loaded.to_dict() == pipeline.to_dict()
        asked = {"retriever": {"query": "moon", "top_k": 2}}
        assert loaded.run(asked) == pipeline.run(asked)

    def test_it_is_joined_with_another_retriever(self, folder):
        made = Pipeline()
        made.add_component("one", RetrodistillRetriever(folder, top_k=2))
        made.add_component("other", RetrodistillRetriever(folder, filters=FILTERS[3]))
        made.add_component("join", DocumentJoiner())
        made.connect("one", "join")
        made.connect("other", "join")
        found = made.run({"one": {"query": "star"}, "other": {"query": "star"}})["join"]["documents"]
        assert {"a", "e"} <= {document.id for document in found}

    def test_nothing_is_opened_before_it_is_needed(self, tmp_path):
        retriever = RetrodistillRetriever.from_dict(RetrodistillRetriever(str(tmp_path / "none")).to_dict())
        with pytest.raises(UserError, match="none"):
            retriever.warm_up()

    def test_an_open_index_cannot_be_saved(self, folder, small):
        retriever = RetrodistillRetriever(load_index(folder), small)
        assert len(retriever.run("moon")["documents"]) == 5
        with pytest.raises(UserError, match="index is FaissIndex, which a pipeline cannot save"):
            retriever.to_dict()

    def test_nothing_is_reported_to_haystack_s_makers(self):
        assert _telemetry.telemetry is None


class TestFilters:
    @pytest.mark.parametrize("filters", FILTERS)
    def test_they_select_what_they_select_in_haystack_s_own_store(self, folder, filters):
        retriever = RetrodistillRetriever(folder)
        store = InMemoryDocumentStore()
        store.write_documents(retriever.run("moon")["documents"])
        wanted = {document.id for document in store.filter_documents(filters)}
        assert {document.id for document in retriever.run("moon", filters=filters)["documents"]} == wanted
        assert 0 < len(wanted) < 5

    def test_those_of_a_run_replace_the_component_s(self, folder):
        retriever = RetrodistillRetriever(folder, filters=FILTERS[1])
        assert {document.id for document in retriever.run("moon")["documents"]} == {"a", "c"}
        assert {document.id for document in retriever.run("moon", filters=FILTERS[3])["documents"]} == {"a", "e"}
        assert len(retriever.run("moon", filters={})["documents"]) == 5

    @pytest.mark.parametrize(
        ("filters", "message"),
        [
            ({"year": 2020}, "have an 'operator'"),
            ({"operator": "NOT", "conditions": [FILTERS[0]]}, "in place of NOT"),
            ({"operator": "AND"}, "with 'conditions'"),
            ({"field": "meta.year", "operator": "contains", "value": 1}, "unknown operator 'contains'"),
            ({"field": "meta.colour", "operator": "==", "value": 1}, "unknown field 'colour'"),
            ({"field": "meta.year", "operator": "==", "value": "x"}, "not a whole number"),
        ],
    )
    def test_others_are_refused(self, folder, filters, message):
        with pytest.raises(UserError, match=message):
            RetrodistillRetriever(folder).run("moon", filters=filters)

    def test_a_missing_value_is_not_different_from_anything(self, folder):
        filters = {"field": "meta.lang", "operator": "!=", "value": "en"}
        found = RetrodistillRetriever(folder).run("moon", filters=filters)["documents"]
        assert {document.id for document in found} == {"b", "d"}
