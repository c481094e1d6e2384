import math

import numpy as np
import pytest
import Stemmer

from retrodistill.core.errors import UserError
from retrodistill.core.runtime import set_quiet
from retrodistill.data import Collection, Texts
from retrodistill.rankers import load_ranker
from retrodistill.rankers.analyzers import languages, load_analyzer, not_english, setting_for, stopwords_of
from retrodistill.rankers.bm25 import BM25

GERMAN = [
    "Die Herzen der Kinder schlagen schneller als die der Eltern.",
    "Der Rhein fließt durch Köln und mündet in den Niederlanden in die Nordsee.",
    "Im Winter werden die Straßen der Stadt jeden Morgen vom Schnee geräumt.",
]
CHINESE = [
    "北京是中华人民共和国的首都。熊猫吃竹子。",
    "上海是中国最大的城市，人口超过两千万。",
    "他们用C语言写了2个程序。",
]
ENGLISH = ["The capital of China is a city in the north.", "They wrote two programs in C and one of them in R."]


def terms(setting, text):
    tokens = load_analyzer(setting)([text])
    names = {number: term for term, number in tokens.vocab.items()}
    return [names[number] for number in tokens.ids[0]]


def texts(documents):
    return Texts.from_pairs((f"d{row}", text) for row, text in enumerate(documents))


def collection(*documents):
    return Collection.from_parts("some", dict(texts(documents)), {}, {})


def found(setting, documents, query):
    """Rows of the documents that a query finds, the best first."""
    rows = BM25(texts(documents), setting).search([query], len(documents))[0][0]
    return [int(row) for row in rows if row >= 0]


class TestTerms:
    @pytest.mark.parametrize(
        ("setting", "text", "expected"),
        [
            ("german", "Die Herzen der Kinder", ["herz", "kind"]),
            ("german", "STRAẞE Straße", ["strass", "strass"]),
            ("english", "Pointers in C and R", ["pointer", "c", "r"]),
            ("spanish", "¿Cuántos puntos cedieron?", ["cuant", "punt", "ced"]),
            ("hindi", "पैंथर्स ने कितने अंक", ["पैंथर्स", "न", "कित", "अंक"]),
            ("turkish", "IŞIK İPEK", ["ışık", "ipek"]),
            ("characters", "ｆｕｌｌ wid\u00adth ﬁne", ["full", "width", "fine"]),
            ("characters", "熊猫吃", ["熊", "猫", "吃", "熊猫", "猫吃"]),
            ("characters", "用C语言", ["用", "c", "语", "言", "语言"]),
            ("characters", "2019年", ["2019", "年"]),
            ("characters", "ที่นี่", ["ที่", "นี่", "ที่นี่"]),
            ("characters", "한국 사람", ["한", "국", "한국", "사", "람", "사람"]),
            ("german", "Kinder 熊猫", ["kind", "熊", "猫", "熊猫"]),
            ("characters", "... !", []),
        ],
    )
    def test_of_a_text(self, setting, text, expected):
        assert terms(setting, text) == expected

    @pytest.mark.parametrize("language", languages())
    def test_every_language_of_snowball(self, language):
        stem = Stemmer.Stemmer(language).stemWord
        assert terms(language, "zanzibar x") == [stem("zanzibar"), stem("x")]

    def test_of_a_tokenizer_are_its_tokens_without_unknown_ones(self, tiny_model):
        assert terms(tiny_model, "star unicornish planet 熊") == ["star", "planet"]

    def test_numbers_are_shared_within_a_call(self):
        tokens = load_analyzer("german")(["Herz", "Kind", "Herzen"])
        assert tokens.ids == [[0], [1], [0]]


class TestScores:
    def test_they_are_bm25s_formula(self):
        documents = ["Herz Herzen Kind", "Kinder der Stadt", "Rhein"]
        scores = next(BM25(texts(documents), "german").scores(["die Herzen der Kinder"]))
        lengths, k1, b = [3, 2, 1], 1.5, 0.75
        counts = {"herz": [2, 0, 0], "kind": [1, 1, 0]}
        expected = np.zeros(3)
        for of_term in counts.values():
            documents_with = sum(count > 0 for count in of_term)
            idf = math.log(1 + (3 - documents_with + 0.5) / (documents_with + 0.5))
            for row, count in enumerate(of_term):
                expected[row] += idf * count / (count + k1 * (1 - b + b * lengths[row] / 2))
        np.testing.assert_allclose(scores, expected, rtol=1e-6)

    def test_a_plural_is_found_in_its_language(self):
        assert found("german", GERMAN, "Herz Kind") == [0]
        assert found("", GERMAN, "Herz Kind") == []

    @pytest.mark.parametrize("query", ["熊", "首都", "中华人民共和国"])
    def test_chinese_is_found_by_characters(self, query):
        assert found("characters", CHINESE, query)[0] == 0
        assert found("", CHINESE, query) == ([] if len(query) == 1 else [0])

    @pytest.mark.parametrize("setting", ["english", "characters"])
    def test_terms_of_one_letter_are_found(self, setting):
        assert found(setting, ENGLISH, "R") == [1]
        assert found("", ENGLISH, "R") == []


class TestFingerprints:
    def test_the_default_has_one_of_its_own_that_plain_words_share(self):
        assert BM25(texts(ENGLISH)).fingerprint == BM25(texts(ENGLISH), "").fingerprint

    def test_each_setting_has_its_own(self, tiny_model):
        settings = ["", "english", "german", "characters", tiny_model]
        assert len({BM25(texts(ENGLISH), setting).fingerprint for setting in settings}) == len(settings)

    def test_auto_has_that_of_the_language(self):
        auto, german = load_ranker("bm25:auto"), load_ranker("bm25:german")
        assert auto.fingerprint(collection(*GERMAN)) == german.fingerprint(collection(*GERMAN))
        assert auto.of(collection(*GERMAN)).name == "bm25:german"


class TestDetection:
    @pytest.mark.parametrize(
        ("documents", "expected"),
        [
            (GERMAN, "german"),
            (CHINESE, "characters"),
            (ENGLISH, "english"),
            ([*GERMAN[:1], *CHINESE[:1]], "characters"),
            (["1234", "x = 3"], "characters"),
        ],
    )
    def test_the_setting_that_auto_stands_for(self, documents, expected):
        assert setting_for(texts(documents)) == expected

    @pytest.mark.parametrize("documents", [ENGLISH, ["1234", "5 6"], [*GERMAN[:1], *CHINESE[:1]], [""]])
    def test_no_warning_without_another_language(self, documents):
        assert not_english(texts(documents)) is None

    def test_the_warning_names_the_setting_and_is_logged_once(self, capsys):
        set_quiet(False)
        for _ in range(2):
            load_ranker("bm25").search(texts(["Herz"]), collection(*GERMAN, "Noch ein ganzer Satz."), 1)
        assert capsys.readouterr().err.count("bm25:german") == 1

    def test_other_settings_do_not_warn(self, capsys):
        set_quiet(False)
        load_ranker("bm25:german").search(texts(["Herz"]), collection(*GERMAN, "Und noch ein Satz mehr."), 1)
        assert not capsys.readouterr().err


class TestStopWords:
    @pytest.mark.parametrize(
        ("documents", "words"),
        [(ENGLISH, {"the", "which"}), (GERMAN, {"und"}), ([*GERMAN, *ENGLISH], {"und", "which"}), (CHINESE, {"的"})],
    )
    def test_are_those_of_the_languages_of_the_documents(self, documents, words):
        found = stopwords_of(texts(documents))
        assert found & {"the", "which", "und", "的"} >= words
        assert ("und" in found) == ("und" in words)

    def test_there_are_none_without_a_language(self):
        assert stopwords_of(texts(["1234", ""])) == frozenset()


class TestMistakes:
    @pytest.mark.parametrize(
        ("setting", "meant"), [("germna", "german"), ("de", "german"), ("charcters", "characters")]
    )
    def test_the_nearest_setting_is_named(self, setting, meant):
        with pytest.raises(
            UserError, match=rf"bm25:{setting}.* Did you mean '{meant}'\? Known: auto, characters, arabic"
        ):
            load_ranker(f"bm25:{setting}")
