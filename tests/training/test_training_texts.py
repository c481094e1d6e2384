import json

import numpy as np
import pytest

from retrodistill.core.errors import UserError
from retrodistill.data import Collection, Texts
from retrodistill.data.leaks import ExcludedQueries
from retrodistill.data.pseudo_queries import is_phrase, title_texts
from retrodistill.training.texts import training_texts


@pytest.fixture
def small():
    documents = {
        "a": ("On stars", "A star shines. Planets orbit it. Comets come back."),
        "b": ("", "Bread is baked. Cheese is aged."),
        "c": ("What is law?", "Courts decide cases."),
    }
    return Collection.from_parts("small", documents, {"q1": "shining star", "t1": "what IS law"}, {})


class TestGathering:
    def test_queries_come_first_and_have_no_source(self, tiny):
        texts = training_texts(tiny, tiny.split("train"), titles=True, sentences=2)
        assert texts.texts.ids[:42] == tiny.split("train").ids
        assert (texts.sources[:42] == -1).all()
        assert (texts.sources[42:] >= 0).all()

    def test_the_number_of_sentences(self, tiny):
        assert len(training_texts(tiny, tiny.split("train"), titles=True, sentences=1)) == 42 + 60 + 60
        assert len(training_texts(tiny, tiny.split("train"), titles=False, sentences=0)) == 42
        assert len(training_texts(tiny, tiny.split("train").select([]), titles=True, sentences=0)) == 60

    def test_every_pseudo_query_occurs_in_its_source(self, tiny):
        texts = training_texts(tiny, tiny.split("train").select([]), titles=True, sentences=3)
        documents = tiny.documents.texts
        for text, source in zip(texts.texts.texts, texts.sources, strict=True):
            assert text in documents[source]

    def test_untitled_documents_have_no_title(self, small):
        texts = training_texts(small, Texts.from_pairs([]), titles=True, sentences=0)
        assert texts.texts.texts == ["On stars", "What is law?"]
        assert texts.sources.tolist() == [0, 2]

    def test_at_most_that_many_sentences_of_each_document(self, small):
        for count, expected in ((1, 3), (2, 5), (9, 6)):
            assert len(training_texts(small, Texts.from_pairs([]), titles=False, sentences=count)) == expected

    def test_the_seed_decides_which(self, small):
        drawn = {
            seed: training_texts(small, Texts.from_pairs([]), titles=False, sentences=1, seed=seed).texts.texts
            for seed in range(6)
        }
        assert drawn[0] == training_texts(small, Texts.from_pairs([]), titles=False, sentences=1, seed=0).texts.texts
        assert len({tuple(texts) for texts in drawn.values()}) > 1


class TestAugmentation:
    def test_texts_of_documents_have_copies_which_keep_their_sources(self, tiny):
        plain = training_texts(tiny, tiny.split("train"), sentences=1)
        texts = training_texts(tiny, tiny.split("train"), sentences=1, word_dropout=0.5)
        assert texts.texts.ids[: len(plain)] == plain.texts.ids
        copied = [row for row in range(42, len(plain)) if len(plain.texts.texts[row].split()) > 1]
        assert texts.sources[len(plain) :].tolist() == plain.sources[copied].tolist()

    def test_a_limit_counts_copies(self, tiny):
        assert len(training_texts(tiny, tiny.split("train"), sentences=2, word_dropout=0.5, limit=60)) <= 60

    def test_joined_sentences_are_of_their_first_document(self, tiny):
        texts = training_texts(tiny, tiny.split("train").select([]), titles=False, sentences=0, joined=True)
        assert sorted(texts.sources.tolist()) == list(range(60))

    def test_nothing_is_made_from_a_text_near_a_test_query(self):
        leaked = "Comets have long tails of dust and ice."
        documents = {"a": ("", leaked), "b": ("", "Bread is baked in an oven."), "c": ("", "Courts decide cases.")}
        given = Collection.from_parts("small", documents, {"q": "bread"}, {})
        excluded = ExcludedQueries(Texts.from_pairs([("t", leaked)]))
        options = {"titles": False, "sentences": 1, "joined": True, "word_dropout": 0.5, "excluded": excluded}
        for seed in range(5):
            texts = training_texts(given, given.queries, seed=seed, **options)
            assert len(texts) == 1 + 2 + 2 + 4
            assert not any(word in text for text in texts.texts.texts for word in ("Comets", "dust", "ice"))

    def test_a_copy_near_a_test_query_is_left_out(self, small):
        excluded = ExcludedQueries(Texts.from_pairs([("t", "Planets it.")]))
        for seed in range(9):
            made = training_texts(
                small,
                small.queries.select([]),
                titles=False,
                sentences=9,
                word_dropout=0.3,
                seed=seed,
                excluded=excluded,
            )
            assert "Planets it." not in made.texts.texts


class TestLimit:
    def test_queries_come_first_then_the_texts_of_some_documents(self, tiny):
        texts = training_texts(tiny, tiny.split("train"), titles=True, sentences=2, limit=100)
        assert texts.texts.ids[:42] == tiny.split("train").ids
        used = set(texts.sources[42:].tolist())
        assert len(used) == (100 - 42) // 3
        whole = training_texts(tiny, tiny.split("train"), titles=True, sentences=2)
        kept = [row for row, source in enumerate(whole.sources) if source < 0 or source in used]
        assert texts.texts.ids == [whole.texts.ids[row] for row in kept]

    def test_many_queries_leave_half_to_the_documents(self, tiny):
        texts = training_texts(tiny, tiny.split("train"), titles=True, sentences=1, limit=20)
        assert [int((texts.sources < 0).sum()), len(texts)] == [10, 20]
        alone = training_texts(tiny, tiny.split("train"), titles=False, sentences=0, limit=20)
        assert len(alone) == 20
        assert set(alone.texts.ids) < set(tiny.split("train").ids)

    def test_a_limit_that_is_not_reached_changes_nothing(self, tiny):
        given = training_texts(tiny, tiny.split("train"), limit=42 + 60 * 4)
        assert given.texts.fingerprint == training_texts(tiny, tiny.split("train")).texts.fingerprint

    def test_rows_of_documents_in_a_corpus_of_several_batches(self, tiny, monkeypatch):
        monkeypatch.setattr("retrodistill.data.pseudo_queries.BATCH", 7)
        whole, rows = title_texts(tiny), np.array([0, 6, 7, 30, 59])
        assert title_texts(tiny, rows).ids == [whole.ids[row] for row in rows]


@pytest.fixture
def generated(tiny, tmp_path):
    """A file of two queries for each document of the tiny collection."""
    rows = [
        {"_id": f"{document}-{number}", "text": f"{document}{number} {tiny.titles[document]}", "document_id": document}
        for document in tiny.documents.ids
        for number in range(2)
    ]
    path = tmp_path / "generated.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


NONE = {"titles": False, "sentences": 0}


class TestGenerated:
    def test_each_has_its_source(self, tiny, generated):
        texts = training_texts(tiny, tiny.split("train"), **NONE, generated=generated)
        assert len(texts) == 42 + 120
        np.testing.assert_array_equal(texts.sources[42:], np.repeat(np.arange(60), 2))
        np.testing.assert_array_equal(texts.hidden, texts.sources)

    def test_within_a_limit_they_come_between_queries_and_texts_of_documents(self, tiny, generated):
        texts = training_texts(tiny, tiny.split("train"), titles=True, sentences=0, generated=generated, limit=100)
        made = np.array(["generated:" in id_ for id_ in texts.texts.ids])
        assert [int((texts.sources < 0).sum()), int(made.sum()), len(texts)] == [42, 29, 100]
        alone = training_texts(tiny, tiny.split("train"), **NONE, generated=generated, limit=100)
        assert [int((alone.sources < 0).sum()), len(alone)] == [42, 100]
        again = training_texts(tiny, tiny.split("train"), **NONE, generated=generated, limit=100)
        assert again.texts.fingerprint == alone.texts.fingerprint

    def test_one_that_is_nearly_a_test_query_is_left_out(self, tiny, generated):
        excluded = ExcludedQueries(Texts.from_pairs([("t", f"d71 {tiny.titles['d7']} today")]))
        texts = training_texts(tiny, tiny.queries.select([]), **NONE, generated=generated, excluded=excluded)
        assert (texts.left_out, len(texts)) == (1, 119)


class TestPhrases:
    def test_have_sources_that_are_not_hidden(self, tiny):
        texts = training_texts(tiny, tiny.split("train"), titles=True, sentences=0, phrases=2)
        phrases = is_phrase(texts.texts)
        assert phrases.sum() > 60
        assert (texts.sources[phrases] >= 0).all()
        assert (texts.hidden[phrases] == -1).all()
        np.testing.assert_array_equal(texts.hidden[~phrases], texts.sources[~phrases])
        for text, source in zip(texts.texts.texts, texts.sources, strict=True):
            assert source < 0 or text in tiny.documents.column[source]

    def test_neither_begin_nor_end_with_an_english_stop_word(self, tiny):
        for text in training_texts(tiny, tiny.queries.select([]), **NONE, phrases=9).texts.texts:
            assert {"the", "of", "and", "that", "by"}.isdisjoint((text.split()[0], text.split()[-1])), text

    def test_one_that_is_a_test_query_is_left_out(self, small):
        free = training_texts(small, Texts.from_pairs([]), **NONE, phrases=5)
        excluded = ExcludedQueries(Texts.from_pairs([("t", free.texts.texts[0].upper())]))
        texts = training_texts(small, Texts.from_pairs([]), **NONE, phrases=5, excluded=excluded)
        assert free.texts.texts[0] not in texts.texts.texts
        assert texts.left_out >= 1


class TestLeaks:
    def test_a_title_that_is_a_test_query_is_left_out_whatever_its_case(self, small):
        excluded = ExcludedQueries(small.queries.select(["t1"]))
        texts = training_texts(small, Texts.from_pairs([]), titles=True, sentences=3, excluded=excluded)
        assert "What is law?" not in texts.texts.texts
        assert "On stars" in texts.texts.texts
        free = training_texts(small, Texts.from_pairs([]), titles=True, sentences=3)
        assert (len(texts), texts.left_out, free.left_out) == (len(free) - 1, 1, 0)
        np.testing.assert_array_equal(np.unique(texts.sources), [0, 1, 2])


class TestNothing:
    def test_the_error_says_what_to_give(self, tiny):
        with pytest.raises(
            UserError, match=r"no query and no text of documents to train on; give a split with queries"
        ):
            training_texts(tiny, tiny.split("train").select([]), titles=False, sentences=0)


class TestIdsOfUsers:
    def test_those_that_look_like_pseudo_queries_are_queries(self, small):
        queries = Texts.from_pairs([("title:a", "comets"), ("sentence:a:0", "bread"), ("document:c", "judges")])
        texts = training_texts(small, queries, titles=True, sentences=2, documents=True)
        assert texts.texts.ids[:3] == queries.ids
        assert texts.sources[:3].tolist() == [-1, -1, -1]
        assert len(texts) == len(queries) + len(
            training_texts(small, Texts.from_pairs([]), sentences=2, documents=True)
        )

    def test_a_test_query_bars_no_pseudo_query_of_its_id(self, small):
        excluded = ExcludedQueries(Texts.from_pairs([("title:a", "something else")]))
        assert training_texts(small, Texts.from_pairs([]), sentences=0, excluded=excluded).left_out == 0
