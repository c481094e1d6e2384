import json
from collections import Counter

import numpy as np
import pytest

from retrodistill.core.errors import UserError
from retrodistill.data.pseudo_queries import load_generated
from retrodistill.encoders import encode_with
from retrodistill.generation import GenerationSettings, generate_queries, plan_generation
from retrodistill.generation.seq2seq import Seq2SeqGenerator, _gumbel_noise

SHORT = {"query_tokens": 6}


@pytest.fixture
def generated(tiny, tiny_seq2seq, tmp_path):
    """The queries of the tiny collection, in a file of their own."""

    def generated(name="made", store=None, **settings):
        path = tmp_path / f"{name}.jsonl"
        folder = tmp_path / (store or f"store-{name}")
        queries = generate_queries(tiny, f"seq2seq:{tiny_seq2seq}", path, {**SHORT, **settings}, store=folder)
        assert dict(load_generated(path, tiny)) == dict(queries)
        return path.read_text()

    return generated


@pytest.fixture
def calls(monkeypatch):
    """The requests of each forward pass; the pass whose number is put into the list's first item fails."""
    calls, compute = [None], Seq2SeqGenerator._generated

    def counted(self, requests):
        if len(calls) == calls[0]:
            raise KeyboardInterrupt
        calls.append(list(requests))
        return compute(self, requests)

    monkeypatch.setattr(Seq2SeqGenerator, "_generated", counted)
    return calls


class TestSampling:
    def test_the_seed_decides(self, generated):
        first = generated("a")
        assert generated("b") == first
        assert generated("c", seed=1) != first

    def test_a_document_has_as_many_distinct_queries_or_fewer(self, generated, tiny):
        rows = [json.loads(line) for line in generated(per_document=4).splitlines()]
        counts = Counter(row["document_id"] for row in rows)
        assert set(counts) <= set(tiny.documents.ids)
        assert max(counts.values()) == 4
        assert len({(row["document_id"], row["text"].casefold()) for row in rows}) == len(rows)
        assert rows[0]["_id"] == f"{rows[0]['document_id']}-1"

    def test_batches_do_not(self, generated, calls):
        whole = generated("a")
        with encode_with(batch_size=7):
            assert generated("b") == whole
        assert {len(part) for part in calls[-9:]} == {7, 4}

    def test_the_next_token_has_the_probability_of_the_model(self):
        import torch

        shares = torch.tensor([0.5, 0.3, 0.2])
        noise = _gumbel_noise([str(row) for row in range(4000)])
        drawn = noise(None, shares.log().expand(4000, 3)).argmax(dim=1)
        np.testing.assert_allclose(torch.bincount(drawn, minlength=3) / 4000, shares, atol=0.02)

    def test_temperature_zero_takes_the_most_likely(self, tiny, tiny_seq2seq):
        import torch

        model = Seq2SeqGenerator(tiny_seq2seq, GenerationSettings(per_document=1, temperature=0, **SHORT))
        [text] = model._generated([model.requests(tiny.documents.column)[0]])
        inputs = model.tokenizer([tiny.documents.column[0]], return_tensors="pt")
        with torch.inference_mode():
            expected = model.model.generate(**inputs, max_new_tokens=6, do_sample=False)
        assert text == model.tokenizer.decode(expected[0], skip_special_tokens=True)

    def test_a_prompt_comes_before_the_document(self, tiny, tiny_seq2seq, tmp_path):
        (tmp_path / "prompt.txt").write_text("ask: {document}\n")
        model = Seq2SeqGenerator(tiny_seq2seq, GenerationSettings(prompt=str(tmp_path / "prompt.txt")))
        assert json.loads(model.requests(tiny.documents.column)[3])["text"] == f"ask: {tiny.documents['d3']}"


class TestDocuments:
    def test_some_are_drawn_by_the_seed(self, generated):
        def documents(text):
            return {json.loads(line)["document_id"] for line in text.splitlines()}

        some, others = (documents(generated(f"s{seed}", documents=9, seed=seed)) for seed in (0, 1))
        assert len(some) == len(others) == 9
        assert some != others


class TestResuming:
    def test_after_an_interruption_only_the_rest_is_generated(self, generated, calls):
        with encode_with(batch_size=8):
            whole = generated("whole")
            parts = calls[1:]
            calls[:] = [4]
            with pytest.raises(KeyboardInterrupt):
                generated("killed", store="half")
            done, calls[0] = len(calls) - 1, None
            assert generated("killed", store="half") == whole
            assert done == 3
            assert calls[1:] == parts  # each batch once, in the same order
            generated("killed", store="half")
            assert calls[1:] == parts


class TestPlan:
    def test_counts_documents_and_measures_time(self, tiny, tiny_seq2seq, tmp_path):
        model = f"seq2seq:{tiny_seq2seq}"
        work = plan_generation(tiny, model, {**SHORT, "documents": 30})
        assert (work.items, work.unit, work.bill.requests) == (30, "documents", 0)
        assert work.seconds > 0
        generate_queries(tiny, model, tmp_path / "made.jsonl", {**SHORT, "documents": 30})
        assert plan_generation(tiny, model, {**SHORT, "documents": 30}).items == 0


class TestRefusals:
    @pytest.mark.parametrize(
        ("settings", "fact"),
        [
            ({"prompt": "{document} is it"}, "ends with {document}"),
            ({"prompt": "nothing"}, "lacks {document}"),
            ({"temperature": 0}, "per_document to 1"),
            ({"top_p": 2}, "top_p"),
            ({"topk": 2}, "topk"),
        ],
    )
    def test_settings_that_do_not_fit(self, generated, settings, fact):
        with pytest.raises(UserError) as error:
            generated(**settings)
        assert fact in str(error.value)

    @pytest.mark.parametrize(
        ("model", "fact"), [("t5:x", "'t5'"), ("seq2seq", "has no name"), ("seq2seq:/none", "no model folder")]
    )
    def test_models_that_are_none(self, tiny, model, fact, tmp_path):
        with pytest.raises(UserError, match=fact):
            generate_queries(tiny, model, tmp_path / "made.jsonl")

    def test_a_bi_encoder_is_not_one(self, tiny, tiny_model, tmp_path):
        with pytest.raises(UserError, match="is not a sequence-to-sequence model"):
            generate_queries(tiny, f"seq2seq:{tiny_model}", tmp_path / "made.jsonl")

    def test_another_ending(self, tiny, tiny_seq2seq, tmp_path):
        with pytest.raises(UserError, match="JSONL"):
            generate_queries(tiny, f"seq2seq:{tiny_seq2seq}", tmp_path / "made.tsv")
