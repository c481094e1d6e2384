"""How many documents are longer than what a model reads."""

import pytest

from retrodistill.data import Collection
from retrodistill.data.passages import with_passages
from retrodistill.encoders import load_encoder
from retrodistill.encoders.lengths import count_longer, length_warning
from retrodistill.indexes import build_index


@pytest.fixture
def long() -> Collection:
    """30 documents of 100 tokens, 20 of 10."""
    texts = {f"long{number}": "heart star " * 50 for number in range(30)}
    texts |= {f"short{number}": "heart star " * 5 for number in range(20)}
    return Collection.from_parts("long", texts, {}, {})


class TestCounting:
    def test_documents_beyond_the_models_length_count(self, long, tiny_model):
        assert count_longer(load_encoder(f"dense:{tiny_model}"), long.documents) == 30

    def test_a_token_table_reads_whole_texts(self, long, tiny_static):
        assert count_longer(load_encoder(f"static:{tiny_static}"), long.documents) == 0

    def test_few_documents_are_tokenized(self, long, tiny_model, monkeypatch):
        encoder = load_encoder(f"dense:{tiny_model}")
        monkeypatch.setattr("retrodistill.encoders.lengths._SAMPLE", 3)
        read = []
        tokenizer = encoder.model[0].tokenizer
        monkeypatch.setattr(
            type(tokenizer), "__call__", lambda self, texts, **_: read.extend(texts) or {"input_ids": [[0] * 100] * 3}
        )
        count_longer(encoder, long.documents)
        assert len(read) == 3


class TestWarning:
    def test_it_names_the_numbers_and_the_model(self, long, tiny_model):
        line = length_warning(load_encoder(f"dense:{tiny_model}"), long)
        assert all(fact in line for fact in ("30 of 50", "64 tokens", tiny_model, "passages"))

    def test_passages_that_fit_need_none(self, long, tiny_model):
        assert length_warning(load_encoder(f"dense:{tiny_model}"), with_passages(long, "40,0")) is None

    def test_an_index_of_long_documents_says_so_once(self, long, tiny_model, capsys, monkeypatch):
        from retrodistill.core.runtime import set_quiet

        set_quiet(False)
        monkeypatch.setattr("retrodistill.encoders.lengths._SAID", set())
        build_index(long, f"dense:{tiny_model}")
        build_index(long, f"dense:{tiny_model}")
        assert capsys.readouterr().err.count("30 of 50") == 1
