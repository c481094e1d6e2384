import pytest

from retrodistill.data.sentences import sentences


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
