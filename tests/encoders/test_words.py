import numpy as np
import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from retrodistill.encoders import words
from retrodistill.encoders.words import WordTable

PIECES = "hello world ##s ##ing it ' - _ ( ) [ ] . , 1 2 ##3 café über un ##known ##a ##b a b x cls".split()  # noqa: SIM905
TEXTS = [
    "Hello worlds",
    "it's a_b (unknowning) - 123",
    "a\tb\nhello\r\n world  ",
    "",
    "   ",
    "caf\u00e9 \u00fcber hello",  # not ASCII
    "hel\x00lo a\x0bb",  # control characters
    "a [CLS] b [cls] [MASK]",  # added tokens
    "x" * 120,  # longer than a word can be
    "zzz hello \u4e2d\u6587",
]


def bert(*, lowercase=True, added=("[CLS]", "[MASK]")):
    names = ["[UNK]", *added, *dict.fromkeys(PIECES)]
    vocabulary = {name: place for place, name in enumerate(names)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.add_special_tokens(list(added))
    return tokenizer


def expected(tokenizer, texts):
    return [encoding.ids for encoding in tokenizer.encode_batch(texts, add_special_tokens=False)]


class TestIds:
    @pytest.mark.parametrize("lowercase", [True, False])
    @pytest.mark.parametrize("length", [None, 3])
    @pytest.mark.parametrize("added", [("[CLS]", "[MASK]"), ()])
    def test_they_are_the_tokenizers(self, lowercase, length, added):
        tokenizer = bert(lowercase=lowercase, added=added)
        if length:
            tokenizer.enable_truncation(length)
        table = WordTable(tokenizer)
        for _ in range(2):  # words are new, then known
            assert table.ids(TEXTS) == expected(tokenizer, TEXTS)

    def test_of_random_texts(self):
        generator = np.random.default_rng(0)
        characters = [chr(code) for code in [*range(128), 0xE9, 0x130, 0x2028, 0x4E2D]]
        texts = ["".join(generator.choice(characters, 30)) for _ in range(500)]
        texts += ["".join(generator.choice(list("ab [CLS]'s."), 30)) for _ in range(500)]
        tokenizer = bert()
        assert WordTable(tokenizer).ids(texts) == expected(tokenizer, texts)

    def test_a_full_table_still_answers(self, monkeypatch):
        monkeypatch.setattr(words, "_LARGEST", 2)
        tokenizer = bert()
        assert WordTable(tokenizer).ids(TEXTS) == expected(tokenizer, TEXTS)

    def test_truncation_is_read_at_each_call(self):
        tokenizer = bert()
        table = WordTable(tokenizer)
        for change in (lambda: tokenizer.enable_truncation(1), tokenizer.no_truncation):
            change()
            assert table.ids(["worlds a b"]) == expected(tokenizer, ["worlds a b"])


class TestFits:
    def test_only_tokenizers_of_this_kind(self):
        tokenizer = bert()
        assert WordTable.fits(tokenizer)
        tokenizer.enable_truncation(3, direction="left")
        assert not WordTable.fits(tokenizer)
        other = bert()
        other.pre_tokenizer = pre_tokenizers.Whitespace()
        assert not WordTable.fits(other)
        assert not WordTable.fits(Tokenizer(models.BPE()))
