import pytest

from retrodistill.core.errors import UserError
from retrodistill.data import Collection
from retrodistill.data.sentences import sample_sentences, sentences, source_document, title_texts
from retrodistill.data.texts import GENERATED


def collection(documents):
    return Collection.from_parts("small", documents, {}, {})


BODY = "One two three. Four five six. Seven eight nine. Ten eleven twelve."


class TestSentences:
    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("Cells grow fast. They divide often.", ["Cells grow fast.", "They divide often."]),
            ("See e.g. Smith et al. (2010). It works well.", ["See e.g. Smith et al. (2010).", "It works well."]),
            ("As in Fig. 2 it rose by 3.5. Then it fell.", ["As in Fig. 2 it rose by 3.5.", "Then it fell."]),
            ("She lives at No. 5 there. We say no. They go.", ["She lives at No. 5 there.", "We say no."]),
            ("J. R. Smith wrote this. We read it.", ["J. R. Smith wrote this.", "We read it."]),
            ("It was found in the U.S. Army files.", ["It was found in the U.S. Army files."]),
            ("Is it so? Yes it is! (It is so.) Quite so.", ["Is it so?", "Yes it is!", "(It is so.)"]),
            ("He said \"it is so.\" Then he left.", ['He said "it is so."', "Then he left."]),
            ("a wing in flow . the lift is high .", ["a wing in flow .", "the lift is high ."]),
            ("A title line here\n\nAnd a paragraph\nover lines", ["A title line here", "And a paragraph over lines"]),
            ("Too short. No. This one is long enough", ["This one is long enough"]),
            ("about approx. five of them", ["about approx. five of them"]),
            ("", []),
            (" . . . ", []),
            ("熊猫住在中国。它们吃什么？“它们吃竹子！”很短。", ["熊猫住在中国。", "它们吃什么？", "“它们吃竹子！”"]),
            ("यह एक वाक्य है। यह दूसरा है॥ छोटा।", ["यह एक वाक्य है।", "यह दूसरा है॥"]),
            ("كم عدد النقاط؟كان العدد كبيرا جدا. نعم.", ["كم عدد النقاط؟", "كان العدد كبيرا جدا."]),
            ("Es war z. B. am 3. Oktober so. Dann kam es.", ["Es war z. B. am 3. Oktober so.", "Dann kam es."]),
            (f"{'ก' * 30} {'ข' * 10} {'ค' * 20}", [f"{'ก' * 30} {'ข' * 10}", "ค" * 20]),
            (f"{'ก' * 50} 24 {'ข' * 10}", [f"{'ก' * 50} 24 {'ข' * 10}"]),
        ],
    )  # fmt: skip
    def test_splits(self, text, expected):
        assert sentences(text) == expected

    def test_no_word_is_lost(self):
        text = 'Dr. No. went ... to the U.S. in 1962. "Why?" he asked! etc. and so on .. e.g. this'
        assert " ".join(sentences(text, minimum_words=1)).split() == text.split()


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
