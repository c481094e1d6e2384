"""Analyzers: the terms that BM25 makes of texts, by its setting, which follows ``bm25:`` in a model's name."""

from __future__ import annotations

import itertools
import sys
import unicodedata
from collections import Counter
from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple, Protocol

import regex

from retrodistill.core.digests import digest
from retrodistill.core.errors import UserError, did_you_mean
from retrodistill.core.runtime import log
from retrodistill.data.languages import UNSPACED, beginnings, languages_of
from retrodistill.data.texts import Texts
from retrodistill.encoders.loading import load_tokenizer
from retrodistill.encoders.reading import tokens_without_text

DEFAULT, AUTO, CHARACTERS = "", "auto", "characters"
SETTINGS = {
    "bm25": "English as in bm25s: stop words, Snowball's stemmer, words (in Chinese, pairs) of two or more characters",
    "bm25:LANGUAGE": "a language of Snowball, such as bm25:german: words of any length, stop words if bm25s has some",
    "bm25:characters": "no stemming; scripts without spaces and Korean become characters and pairs of them",
    "bm25:auto": "the language of most documents in a sample; characters if it has no stemmer, or if none has most",
    "bm25:MODEL": "the tokens of a model's tokenizer: folder or hub name, such as bm25:all-MiniLM-L6-v2",
}
_CODES = {  # of ISO 639 as py3langid gives them, dialects too, and what Snowball calls the language
    "ar": "arabic", "arz": "arabic", "ca": "catalan", "cs": "czech", "da": "danish", "de": "german", "el": "greek",
    "en": "english", "eo": "esperanto", "es": "spanish", "et": "estonian", "eu": "basque", "fa": "persian",
    "fi": "finnish", "fr": "french", "ga": "irish", "hi": "hindi", "hu": "hungarian", "hy": "armenian",
    "id": "indonesian", "it": "italian", "lt": "lithuanian", "nb": "norwegian", "ne": "nepali", "nl": "dutch",
    "nn": "norwegian", "no": "norwegian", "pl": "polish", "pt": "portuguese", "ro": "romanian", "ru": "russian",
    "sr": "serbian", "st": "sesotho", "sv": "swedish", "ta": "tamil", "tr": "turkish", "yi": "yiddish",
}  # fmt: skip
# Share of English stop words, below which documents may not be English: abstracts have .28, titles .09 or more, and
# Spanish and German documents .03.
_ENGLISH_SHARE = 0.08
_MOST = 0.5  # share of the sampled documents that a language must exceed
_SOME = 0.1  # share of the sampled documents from which the stop words of their language count, in `stopwords_of`
_WITHOUT_STEMMER = {"ko": "korean", "zh": "chinese"}  # languages that bm25s has stop words for
_MIXED = "no language has most of the sampled documents"


_CUT = rf"{UNSPACED}\p{{Hangul}}"  # scripts whose runs are cut into characters
_OF_CUT = rf"[{_CUT}][{_CUT}\p{{M}}]*"
_RUN = regex.compile(_OF_CUT)
_TOKENS = regex.compile(rf"{_OF_CUT}|[\w--[{_CUT}]]+", regex.V1)
_IS_CUT = regex.compile(rf"[{_CUT}]")
_CHARACTER = regex.compile(r"\X")  # with its marks
_INVISIBLE = regex.compile(r"\p{Default_Ignorable_Code_Point}+")
_CASE = {"turkish": str.maketrans({"I": "ı", "İ": "i"})}


class Tokens(NamedTuple):
    """The terms of texts as numbers."""

    ids: list[list[int]]  # of each text, in order
    vocab: dict[str, int]  # the number of each term


class Analyzer(Protocol):
    """Makes terms of texts."""

    @property
    def settings(self) -> dict[str, Any]:
        """What decides the terms, for fingerprints."""

    def __call__(self, texts: Sequence[str]) -> Tokens:
        """The terms of each text."""


class DefaultAnalyzer:
    """The tokenizer of bm25s with its English stop words and Snowball's English stemmer.

    It would take a sentence of a script without spaces for one word; runs of these become pairs of characters.
    """

    @property
    def settings(self) -> dict[str, Any]:
        """Stemmer, stop words, and what becomes of scripts without spaces."""
        return {"stemmer": "english", "stopwords": "english", "unspaced": "pairs"}

    def __call__(self, texts: Sequence[str]) -> Tokens:
        """The terms of each text."""
        import Stemmer

        spaced = [text if text.isascii() else _RUN.sub(_spaced_pairs, text) for text in texts]
        stemmer = Stemmer.Stemmer("english")
        return load_bm25s().tokenize(spaced, stopwords="english", stemmer=stemmer, show_progress=False)


def _spaced_pairs(run: regex.Match[str]) -> str:
    """The pairs of neighbors in a run of characters, between spaces."""
    characters = _CHARACTER.findall(run[0])
    return f" {' '.join(map(''.join, itertools.pairwise(characters)))} "


class WordAnalyzer:
    """Words by Unicode's rules: NFKC, case-folded, without invisible characters such as soft hyphens.

    With a `language`, stop words are dropped (the lists of bm25s, which has none for some languages) and the others
    stemmed; accents stay, since stemmers expect them. Runs of a script without spaces, and of Hangul, become their
    characters and pairs of neighbors: pairs alone would lose queries of one character.
    """

    def __init__(self, language: str | None = None) -> None:
        import Stemmer

        self.language = language
        self._stem = Stemmer.Stemmer(language).stemWord if language else None
        listed = _listed("EN" if language == "english" else language or "")
        self._stopwords = {self._normalized(word) for word in listed}

    @property
    def settings(self) -> dict[str, Any]:
        """Rules, stemmer, and stop words."""
        return {"words": "NFKC", "stemmer": self.language, "stopwords": digest(*sorted(self._stopwords))}

    def __call__(self, texts: Sequence[str]) -> Tokens:
        """The terms of each text."""
        vocab: dict[str, int] = {}
        terms: dict[str, list[int]] = {}
        ids: list[list[int]] = []
        for text in texts:
            of_text: list[int] = []
            for token in _TOKENS.findall(self._normalized(text)):
                numbers = terms.get(token)
                if numbers is None:
                    numbers = terms[token] = [vocab.setdefault(term, len(vocab)) for term in self._terms(token)]
                of_text += numbers
            ids.append(of_text)
        return Tokens(ids, vocab)

    def _normalized(self, text: str) -> str:
        if not text.isascii():
            text = _INVISIBLE.sub("", unicodedata.normalize("NFKC", text))
        if self.language in _CASE:
            text = text.translate(_CASE[self.language])
        return text.casefold()

    def _terms(self, token: str) -> list[str]:
        if _IS_CUT.match(token):
            characters = _CHARACTER.findall(token)
            return [*characters, *map("".join, itertools.pairwise(characters))]
        if token in self._stopwords:
            return []
        return [token if self._stem is None else self._stem(token)]


class TokenAnalyzer:
    """The tokens of a model's tokenizer that stand for text: an unknown one would match any other."""

    def __init__(self, model: str) -> None:
        self._tokenizer = load_tokenizer(model)
        self._ignored = tokens_without_text(self._tokenizer)

    @property
    def settings(self) -> dict[str, Any]:
        """Digests of the tokenizer, and of the tokens that are no terms."""
        return {"tokenizer": digest(self._tokenizer.to_str()), "ignored": digest(sorted(self._ignored))}

    def __call__(self, texts: Sequence[str]) -> Tokens:
        """The terms of each text."""
        numbers: dict[int, int] = {}
        encodings = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        ids = [
            [numbers.setdefault(token, len(numbers)) for token in encoding.ids if token not in self._ignored]
            for encoding in encodings
        ]
        return Tokens(ids, {str(self._tokenizer.id_to_token(token)): number for token, number in numbers.items()})


@cache
def load_analyzer(setting: str = DEFAULT) -> Analyzer:
    """The analyzer of a setting other than `AUTO`; a UserError if it is neither a setting nor a model."""
    if setting == DEFAULT:
        return DefaultAnalyzer()
    if setting in (CHARACTERS, *languages()):
        return WordAnalyzer(None if setting == CHARACTERS else setting)
    try:
        return TokenAnalyzer(setting)
    except UserError as error:
        known = [AUTO, CHARACTERS, *languages()]
        hint = f" Did you mean {_CODES[setting]!r}?" if setting in _CODES else did_you_mean(setting, known)
        raise UserError(
            f"bm25:{setting} is not a setting of BM25.{hint} Known: {', '.join(known)}, or a model with a tokenizer "
            f"({str(error).rstrip('.')})."
        ) from error


def languages() -> list[str]:
    """The languages of Snowball's stemmers, without the second stemmers of some."""
    import Stemmer

    return [name for name in Stemmer.algorithms() if "porter" not in name]


def setting_for(documents: Texts) -> str:
    """The setting that fits the language of most documents; which, is logged once."""
    key = documents.fingerprint
    if key not in _chosen:
        _chosen[key], why = _setting_of_most(languages_of(documents))
        log(f"bm25:auto is bm25:{_chosen[key]}: {why}")
    return _chosen[key]


def not_english(documents: Texts) -> str | None:
    """A warning, logged once, for the default setting where documents are clearly not English."""
    key = documents.fingerprint
    if key not in _warnings:
        _warnings[key] = _not_english(documents)
        if _warnings[key] is not None:
            log(f"warning: {_warnings[key]}")
    return _warnings[key]


_chosen: dict[str, str] = {}  # by the documents' fingerprint
_warnings: dict[str, str | None] = {}


def _not_english(documents: Texts) -> str | None:
    words = [word for text in beginnings(documents) for word in text.lower().split()]
    english = set(load_bm25s().stopwords.STOPWORDS_EN)
    if not words or sum(word in english for word in words) > _ENGLISH_SHARE * len(words):
        return None
    setting, why = _setting_of_most(languages_of(documents))
    if why == _MIXED or setting == "english":
        return None
    return f"bm25 is for English, and {why}; use bm25:{setting}, in recipes the key bm25: {setting}."


def stopwords_of(documents: Texts) -> frozenset[str]:
    """Stop words, case-folded, of the languages that at least a tenth of the documents in a sample are in.

    The lists are those of bm25s, of English the longer one. It has none for some languages.
    """
    counts = languages_of(documents)
    codes = [code for code, count in counts.items() if count >= _SOME * counts.total()]
    names = {_CODES.get(code, _WITHOUT_STEMMER.get(code, "")) for code in codes}
    lists = (_listed("EN_PLUS" if name == "english" else name) for name in names)
    return frozenset(word.casefold() for words in lists for word in words)


def _listed(name: str) -> tuple[str, ...]:
    """A list of stop words of bm25s, by the name of its language there; empty if it has none."""
    return tuple(getattr(load_bm25s().stopwords, f"STOPWORDS_{name.upper()}", ()))


def _setting_of_most(counts: Counter[str]) -> tuple[str, str]:
    """The setting for counts of texts by language, and why."""
    settings: Counter[str] = Counter()
    for code, count in counts.items():
        settings[_CODES.get(code, CHARACTERS)] += count
    setting, count = max(settings.items(), key=lambda item: (item[1], item[0]), default=(CHARACTERS, 0))
    if count <= _MOST * counts.total():
        return CHARACTERS, _MIXED
    code = next(code for code in counts if _CODES.get(code, CHARACTERS) == setting)
    return setting, f"{count} of {counts.total()} sampled documents are in {code!r}"


@cache
def load_bm25s() -> Any:
    """Import bm25s without JAX: bm25s would start an installed JAX, which takes most of a GPU's memory."""
    jax = sys.modules.get("jax")
    sys.modules["jax"] = None  # type: ignore[assignment]  # makes Python's import fail
    try:
        import bm25s
    finally:
        del sys.modules["jax"]
        if jax is not None:
            sys.modules["jax"] = jax
    return bm25s
