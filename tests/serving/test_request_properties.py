"""Any request is answered, or refused with one line, whatever is in its body (Hypothesis)."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

TEXT = st.text(max_size=8)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT | st.just("\ud800"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
GOOD = {
    "/search": {
        "query": "star",
        "query_id": "q1",
        "k": 2,
        "filter": {"year": {">=": 2020}},
        "texts": 9,
        "system": "index",
    },
    "/embed": {"texts": ["star", "moon"], "role": "document", "system": "index"},
    "/judge": {"query": "star", "query_id": "q1", "document_id": "a", "relevance": 1},
    "/v1/embeddings": {"input": ["star"], "model": "index", "encoding_format": "base64", "dimensions": 8},
    "/v1/rerank": {"query": "star", "documents": ["moon", {"text": "star"}], "top_n": 1, "model": "index"},
}


@pytest.fixture(scope="module")
def client(index_folder, small_folder, tmp_path_factory):
    from answers import client_of

    judged = tmp_path_factory.mktemp("judged") / "judgments"
    client = client_of(index_folder, collection=str(small_folder), judgments=str(judged))
    yield client
    client.server.served.close()


def bodies(path):
    """Bodies of a route: some of its keys with good values, and one with any other."""
    good = st.fixed_dictionaries({}, optional={key: st.just(value) for key, value in GOOD[path].items()})
    return st.builds(lambda body, key, value: {**body, key: value}, good, st.sampled_from([*GOOD[path], "x"]), JSON)


def check(answer):
    assert answer.status_code < 500, answer.text
    if answer.status_code >= 400:
        assert "\n" not in answer.json()["error"]["message"]


@pytest.mark.parametrize("path", GOOD)
class TestBodies:
    @given(data=st.data())
    def test_of_any_values(self, client, path, data):
        body = json.dumps(data.draw(bodies(path)))
        check(client.post(path, content=body, headers={"Content-Type": "application/json"}))

    @given(content=st.binary(max_size=40) | JSON.map(json.dumps).map(str.encode))
    def test_of_any_bytes(self, client, path, content):
        check(client.post(path, content=content, headers={"Content-Type": "application/json"}))


@given(parameters=st.dictionaries(st.sampled_from(["first", "second", "limit", "offset", "x"]), TEXT))
def test_parameters_of_the_queries(client, parameters):
    check(client.get("/queries", params=parameters))
