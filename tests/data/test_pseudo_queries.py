import json

import numpy as np
import pytest

from retrodistill.core.errors import UserError
from retrodistill.data import Collection, load_collection
from retrodistill.data.phrases import phrase_places
from retrodistill.data.pseudo_queries import (
    document_texts,
    is_phrase,
    joined_sentences,
    load_generated,
    sample_phrases,
    sample_sentences,
    source_document,
    title_texts,
    without_words,
    write_generated,
)
from retrodistill.data.sentences import sentences
from retrodistill.data.texts import GENERATED, Texts


def collection(documents):
    return Collection.from_parts("small", documents, {}, {})


BODY = "One two three. Four five six. Seven eight nine. Ten eleven twelve."


class TestSampling:
    def test_ids_name_the_document_and_the_place(self):
        drawn = sample_sentences(collection({"a:b": ("Title", BODY)}), 10, seed=0)
        assert drawn.ids == [f"{GENERATED}sentence:a:b:{place}" for place in range(4)]
        assert drawn.texts == sentences(BODY)
        assert {source_document(id_) for id_ in drawn.ids} == {"a:b"}

    def test_does_not_depend_on_other_documents_or_their_order(self):
        some = {f"d{n}": BODY for n in range(20)}
        whole = dict(sample_sentences(collection(some), 2, seed=1))
        assert dict(sample_sentences(collection(dict(reversed(some.items()))), 2, seed=1)) == whole
        assert dict(sample_sentences(collection({"d7": BODY}), 2, seed=1)).items() <= whole.items()
        assert dict(sample_sentences(collection(some), 2, seed=2)) != whole
        assert len(whole) == 40

    def test_empty_documents_give_nothing(self):
        assert len(sample_sentences(collection({"a": "", "b": ("Only a title", "")}), 3, seed=0)) == 0

    def test_none_a_document_is_refused(self):
        with pytest.raises(UserError, match="per_document is 0"):
            sample_sentences(collection({"a": BODY}), 0, seed=0)


class TestTitles:
    def test_skips_documents_without_title_or_body(self):
        drawn = title_texts(collection({"a": ("Cats", BODY), "b": ("", BODY), "c": ("Dogs", ""), "t:x": ("Fish", "y")}))
        assert dict(drawn) == {f"{GENERATED}title:a": "Cats", f"{GENERATED}title:t:x": "Fish"}
        assert [source_document(id_) for id_ in drawn.ids] == ["a", "t:x"]

    def test_other_queries_have_no_source_document(self):
        assert [source_document(id_) for id_ in ("q1", "title:a", "sentence:a:1", "document:a")] == [None] * 4
        assert source_document(f"{GENERATED}sentence:") is None

    @pytest.mark.parametrize("parts", [({f"{GENERATED}a": BODY}, {}), ({"a": BODY}, {f"{GENERATED}title:a": "x"})])
    def test_their_ids_are_reserved(self, parts):
        with pytest.raises(UserError, match=r"x00"):
            Collection.from_parts("c", *parts, {})


def phrases_of(text, stopwords=()):
    """The phrases of one, two, and three words."""
    return [[text[place] for place in places] for places in phrase_places(text, stopwords)]


class TestDocuments:
    def test_the_first_sentences_of_so_many_words(self):
        both = collection({"a": ("", BODY), "b": ("", "Short."), "c": ("", "")})
        assert document_texts(both).texts == [BODY, "Short."]
        assert document_texts(both, words=7).texts == ["One two three. Four five six.", "Short."]
        assert document_texts(both, words=2).texts == ["One two", "Short."]


class TestPhrasesOfAText:
    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("state of the art", [["state", "art"], [], []]),
            ("the art of war", [["art", "war"], [], ["art of war"]]),
            ("heart failure, stroke", [["heart", "failure", "stroke"], ["heart failure"], []]),
            ("12 BERT-based models in 2019", [["BERT-based", "models"], ["BERT-based models"], []]),
            ("COVID-19 isn't", [["COVID-19", "isn't"], ["COVID-19 isn't"], []]),
            ("vitamin D", [["vitamin"], ["vitamin D"], []]),
            ("熊猫住在中国。", [["熊猫", "猫住", "住在", "在中", "中国"], ["熊猫住", "猫住在", "住在中", "在中国"],
                          ["熊猫住在", "猫住在中", "住在中国"]]),
            ("यह वाक्य है", [["यह", "वाक्य", "है"], ["यह वाक्य", "वाक्य है"], ["यह वाक्य है"]]),
            ("1 2.5 %", [[], [], []]),
            ("", [[], [], []]),
        ],
    )  # fmt: skip
    def test_are_neighbors_between_stop_words_and_numbers(self, text, expected):
        assert phrases_of(text, {"the", "of", "in"}) == expected

    def test_white_space_does_not_end_one_and_marks_do(self):
        assert phrases_of("blood\n  pressure (high) falls")[1] == ["blood\n  pressure"]

    def test_a_stop_character_is_at_no_end(self):
        assert phrases_of("住在中国", {"在"})[:2] == [["中国"], ["住在中"]]


HEARTS = {"a": ("Heart failure", "The heart pumps blood. Blood pressure rises."), "b:1": "Stars shine at night."}


class TestSampledPhrases:
    def test_ids_name_the_document_and_the_draw(self):
        drawn = sample_phrases(collection(HEARTS), 3, seed=0, stopwords={"the", "at"})
        assert {source_document(id_) for id_ in drawn.ids} == {"a", "b:1"}
        assert set(drawn.ids) <= {f"{GENERATED}phrase:{id_}:{number}" for id_ in HEARTS for number in range(3)}
        assert is_phrase(drawn).all()
        assert not is_phrase(sample_sentences(collection({"a": BODY}), 1, seed=0)).any()

    def test_each_is_a_phrase_of_the_title_or_the_body(self):
        corpus, stopwords = collection(HEARTS), {"the", "at"}
        drawn = sample_phrases(corpus, 50, seed=0, stopwords=stopwords)
        for id_, text in drawn.items():
            title, body = (texts[source_document(id_)] for texts in (corpus.titles, corpus.bodies))
            assert text in [
                phrase for part in (title, body) for found in phrases_of(part, stopwords) for phrase in found
            ]
        titles = {text for id_, text in drawn.items() if source_document(id_) == "a" and text in "Heart failure"}
        assert "Heart failure" in titles

    def test_none_is_drawn_twice_whatever_its_case(self):
        corpus = collection({"a": "Heart attack.", "b": "heart attack.", "c": "HEART ATTACK!"})
        drawn = sample_phrases(corpus, 30, seed=0)
        assert sorted(text.casefold() for text in drawn.texts) == ["attack", "heart", "heart attack"]
        assert {source_document(id_) for id_ in drawn.ids} == {"a"}

    def test_does_not_depend_on_other_documents_where_they_share_none(self):
        corpus = {f"d{n}": f"word{n} is term{n} and more{n}" for n in range(20)}
        whole = dict(sample_phrases(collection(corpus), 2, seed=1))
        assert dict(sample_phrases(collection(dict(reversed(corpus.items()))), 2, seed=1)) == whole
        assert dict(sample_phrases(collection(corpus), 2, seed=2)) != whole
        rows = np.array([3, 7])
        some = sample_phrases(collection(corpus), 2, seed=1, rows=rows)
        assert dict(some) == {id_: text for id_, text in whole.items() if source_document(id_) in ("d3", "d7")}

    def test_none_a_document_is_refused(self):
        with pytest.raises(UserError, match="per_document is 0"):
            sample_phrases(collection({"a": BODY}), 0, seed=0)


KEYS = ("_id", "text", "document_id")
PETS = {"a": ("Cats", "Cats purr. They sleep."), "b:c": "Dogs bark."}


class TestGenerated:
    @pytest.fixture
    def written(self, tmp_path):
        def written(*rows):
            lines = (row if isinstance(row, str) else json.dumps(dict(zip(KEYS, row, strict=False))) for row in rows)
            (tmp_path / "made.jsonl").write_text("\n".join(lines) + "\n")
            return tmp_path / "made.jsonl"

        return written

    def test_a_document_may_have_several(self, written):
        path = written(("1", "do cats sleep", "a"), (2, "barking", "b:c"), ("x:y", "purr", "a"))
        found = load_generated(path, collection(PETS))
        assert found.texts == ["do cats sleep", "barking", "purr"]
        assert [source_document(id_) for id_ in found.ids] == ["a", "b:c", "a"]

    def test_what_is_written_is_read_again(self, written, tmp_path):
        found = load_generated(written(("1", "do cats sleep?", "a"), ("2", "über", "b:c")), collection(PETS))
        write_generated(tmp_path / "again.jsonl", found)
        assert (tmp_path / "again.jsonl").read_text().splitlines() == [
            '{"_id": "1", "text": "do cats sleep?", "document_id": "a"}',
            '{"_id": "2", "text": "über", "document_id": "b:c"}',
        ]
        assert dict(load_generated(tmp_path / "again.jsonl", collection(PETS))) == dict(found)

    def test_of_a_document_in_passages_it_is_the_first_passage(self, written, tiny_folder):
        corpus = load_collection(tiny_folder, passages="3,0")
        found = load_generated(written(("1", "x", "d7"), ("2", "y", "d7#2"), ("3", "z", "d0")), corpus)
        assert [source_document(id_) for id_ in found.ids] == ["d7#1", "d7#2", "d0#1"]

    @pytest.mark.parametrize(
        ("rows", "message"),
        [
            ([("1", "x", "a"), ("2", "y", "z")], "line 2: small has no document 'z' (1 of 2"),
            ([("1", "x", "a"), ("2", "y", "b:c"), ("1", "z", "a")], "line 3: id '1' is in line 1 already"),
            ([("1", "x", "a"), ("2", "y")], "line 2: no 'document_id'"),
            ([("1", "\u200b ", "a")], "line 1: 'text' is empty"),
            ([("1", 5, "a")], "line 1: 'text' is 5 (int)"),
            (["{"], "line 1: not JSON"),
            ([""], "has no lines"),
        ],
    )
    def test_a_wrong_line_is_named(self, written, rows, message):
        with pytest.raises(UserError) as error:
            load_generated(written(*rows), collection(PETS))
        assert message in str(error.value)
        assert "\n" not in str(error.value)

    def test_a_file_that_is_not_there(self, tmp_path):
        with pytest.raises(UserError, match=r"cannot read .*nowhere.jsonl.*No such file"):
            load_generated(tmp_path / "nowhere.jsonl", collection(PETS))


class TestAugmentation:
    def test_each_sentence_meets_one_of_another_document(self, tiny):
        firsts, seconds = sample_sentences(tiny, 1, 3), sample_sentences(tiny, 1, 4)
        joined, used = joined_sentences(firsts, seconds, 3), []
        assert [source_document(id_) for id_ in joined.ids] == [source_document(id_) for id_ in firsts.ids]
        for (id_, text), first in zip(joined.items(), firsts.texts, strict=True):
            second = text.removeprefix(f"{first} ")
            others = {other for name, other in seconds.items() if source_document(name) != source_document(id_)}
            assert second in others
            used.append(second)
        assert len(set(used)) > 50  # of 60
        assert joined_sentences(firsts, seconds, 3).texts == joined.texts
        assert joined_sentences(firsts, seconds, 4).texts != joined.texts

    def test_a_document_alone_has_nothing_to_meet(self):
        alone = sample_sentences(collection({"d": ("", "A sentence of words.")}), 1, 0)
        assert not len(joined_sentences(alone, alone, 0))
        assert not len(joined_sentences(alone, alone.select([]), 0))

    def test_a_share_of_the_words_is_left_out_in_order(self):
        texts = Texts.from_pairs([("q1", "a b c d e f g h i j"), ("q2", "two words"), ("q3", "one"), ("q4", "")])
        made = dict(without_words(texts, 0.3, 0))
        assert list(made) == ["\0shortened:q1", "\0shortened:q2"]
        kept = made["\0shortened:q1"].split()
        assert len(kept) == 7
        assert kept == sorted(kept)
        assert made["\0shortened:q2"] in ("two", "words")
        assert len(dict(without_words(texts, 0.99, 0))["\0shortened:q1"].split()) == 1
        assert dict(without_words(texts, 0.3, 1)) != made

    def test_a_copy_of_a_phrase_is_one(self, tiny):
        phrases = sample_phrases(tiny, 3, 0)
        assert is_phrase(without_words(phrases, 0.5, 0)).all()
        assert not is_phrase(without_words(title_texts(tiny), 0.5, 0)).any()

    def test_the_source_is_that_of_the_text(self, tiny):
        titles = title_texts(tiny)
        assert [source_document(id_) for id_ in without_words(titles, 0.5, 0).ids] == list(
            map(source_document, titles.ids)
        )
        assert source_document(without_words(Texts.from_pairs([("q", "a b")]), 0.5, 0).ids[0]) is None

    @pytest.mark.parametrize("share", [0, 1, -0.1, float("nan")])
    def test_other_shares_are_refused(self, share):
        with pytest.raises(UserError, match="share="):
            without_words(Texts.from_pairs([("q", "a b")]), share, 0)
