import numpy as np
import pytest
from records_of import IDS, dense, space, sparse

from retrodistill.core.errors import UserError
from retrodistill.encoders.multi_vector import Tokens
from retrodistill.exports import StoreSettings, VectorStore, export_index, vector_records
from retrodistill.exports.records import exact_search


class MemoryStore(VectorStore):
    """All that a store needs, in memory; `change` alters what a search finds."""

    options = StoreSettings
    batch_size = 7
    sample = 40
    min_agreement = 0.0

    def __init__(self, change=lambda answers: answers):
        self.settings, self.change, self.documents, self.queries = StoreSettings(), change, {}, []

    @property
    def address(self):
        return "memory:here"

    def create(self, spec):
        self.spec = spec

    def upload(self, batches):
        for batch in batches:
            self.documents |= dict(zip(batch.ids, range(batch.start, batch.stop), strict=True))
        return len(self.documents)

    def finish(self):
        return {}

    def manifest(self):
        return None

    def count(self):
        return len(self.documents)

    def stored(self, ids):
        return list(ids), self.spec.take([self.documents[document] for document in ids])

    def best(self, queries, k, filter=None):
        self.queries.append(queries)
        batches = ((batch.ids, batch.vectors) for batch in self.spec.batches())
        return self.change(exact_search(batches, queries, k))

    def close(self):
        pass


def agreement(records, change=lambda answers: answers):
    return export_index(records, MemoryStore(change)).facts["agreement"]


class TestAgreement:
    def test_it_is_the_share_of_the_exact_top_ten(self):
        records, vectors = dense()
        worst = [[(IDS[row], -99.0) for row in np.argsort(vectors @ vector)[:3]] for vector in vectors]

        def three_worst(answers):
            return [[*pairs[:7], *wrong] for pairs, wrong in zip(answers, worst, strict=True)]

        assert agreement(records) == 1
        assert agreement(records, lambda answers: [pairs[:4] for pairs in answers]) == pytest.approx(0.4)
        assert agreement(records, three_worst) == pytest.approx(0.7)

    def test_strangers_do_not_count_whatever_their_score(self):
        def strangers(answers):
            return [[(f"stranger {row}", 99.0) for row in range(10)] for _ in answers]

        assert agreement(dense()[0], strangers) == 0

    def test_documents_without_a_common_entry_need_not_be_found(self):
        assert agreement(sparse()[0]) == 1

    def test_a_store_has_to_find_what_it_promises(self):
        store = MemoryStore(lambda answers: [pairs[:8] for pairs in answers])
        store.min_agreement = 0.9
        with pytest.raises(UserError, match=r"memory:here finds 80.0% of the exact top 10 .*, wanted 90%"):
            export_index(dense()[0], store)

    def test_long_documents_ask_by_their_first_tokens(self):
        tokens = Tokens.of([np.ones((50, 2)), np.ones((3, 2))], 2)
        store = MemoryStore()
        export_index(vector_records(["long", "short"], tokens, space(2, "maxsim")), store)
        assert store.queries[0].lengths.tolist() == [32, 3]
