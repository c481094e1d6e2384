"""Models of every class that are trimmed to the vocabulary of some texts, saved, and read by the library itself."""

import json

import numpy as np
import pytest
import torch
from backbones import ARCHITECTURES, backbone, bi_encoder, tokenizer_of
from sentence_transformers import CrossEncoder, MultiVectorEncoder, SentenceTransformer, SparseEncoder
from sentence_transformers.base.modules import Dense, Router, Transformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, StaticEmbedding
from sentence_transformers.sparse_encoder.modules import SparseStaticEmbedding, SpladePooling
from sparse_models import masked_model
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from retrodistill.core.errors import UserError
from retrodistill.core.manifest import Manifest
from retrodistill.data import Texts
from retrodistill.encoders.layers import first_position
from retrodistill.students import save_student
from retrodistill.students.cross_encoder import cross_encoder_student
from retrodistill.students.hybrid import hybrid_student
from retrodistill.students.lexical_terms import LexicalTerms
from retrodistill.students.trimming import trim_model
from retrodistill.students.vdr import VocabularyPooling

DOCUMENTS = ["the galaxy and the planet in orbit", "a violin and a cello play a melody", "star"]
QUERIES = ["what star is in the galaxy", "all about violin"]
TEXTS = [*DOCUMENTS, *QUERIES]
LETTERS = "abcdefghijklmnopqrstuvwxyz."
# All letters in both forms, so that any word has pieces, and words that no text has before the special tokens.
PIECES = ["[PAD]", "whale", "shark", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *LETTERS, *(f"##{one}" for one in LETTERS)]
WORDS = "star galaxy planet orbit violin cello melody the and what all about reef coral judge jury".split()  # noqa: SIM905


def trimmed(model, tmp_path, **options):
    """The model before and after, as the library loads it, and the report."""
    report = trim_model(model, DOCUMENTS, QUERIES, **options)
    save_student(report.model, Manifest("student"), tmp_path / "trimmed")
    kind = next(base for base in type(model).__mro__ if base.__module__.startswith("sentence_transformers"))
    own = {"trust_remote_code": True} if any(type(part).__module__.startswith("retro") for part in model) else {}
    return kind(str(tmp_path / "trimmed"), device="cpu", local_files_only=True, **own), report


class TestTransformers:
    @pytest.mark.parametrize("architecture", sorted(ARCHITECTURES))
    def test_vectors_are_those_of_before(self, architecture, tmp_path):
        model = SentenceTransformer(bi_encoder(architecture, tmp_path), device="cpu")
        small, report = trimmed(model, tmp_path)
        assert report.tokens < report.before
        np.testing.assert_allclose(small.encode(TEXTS), model.encode(TEXTS), atol=1e-6)
        assert small[0].auto_model.config.vocab_size == report.tokens
        assert len(small[0].auto_model.get_input_embeddings().weight) == report.tokens
        assert len(small.tokenizer) == report.tokens
        assert np.isfinite(small.encode(["unheard-of reefs"])).all()

    @pytest.mark.parametrize("architecture", ["roberta", "xlm-roberta", "mpnet"])
    def test_positions_begin_where_they_did(self, architecture, tmp_path):
        model = SentenceTransformer(bi_encoder(architecture, tmp_path), device="cpu")
        small, _ = trimmed(model, tmp_path)
        assert first_position(small[0].auto_model) == first_position(model[0].auto_model) > 0

    def test_special_tokens_of_the_configuration_have_their_new_ids(self, tmp_path):
        model = SentenceTransformer(bi_encoder("modernbert", tmp_path), device="cpu")
        small, _ = trimmed(model, tmp_path)
        config, tokenizer = small[0].auto_model.config, small.tokenizer
        assert config.pad_token_id == tokenizer.pad_token_id
        assert config.cls_token_id == tokenizer.cls_token_id

    def test_the_model_itself_stays(self, tmp_path):
        model = SentenceTransformer(bi_encoder("bert", tmp_path), device="cpu")
        before = model.encode(TEXTS)
        trim_model(model, DOCUMENTS, QUERIES)
        np.testing.assert_array_equal(model.encode(TEXTS), before)

    def test_prompts_are_texts_too(self, tmp_path):
        model = SentenceTransformer(bi_encoder("bert", tmp_path), device="cpu")
        model.prompts = {"query": "judge: ", "document": ""}
        small, _ = trimmed(model, tmp_path)
        prompted = [each.encode(QUERIES, prompt_name="query") for each in (small, model)]
        np.testing.assert_allclose(*prompted, atol=1e-6)


class TestUnigram:
    """As XLM-R has it, with a mask token behind all pieces."""

    @pytest.fixture
    def tokenizer(self):
        scores = [*((word, -5.0) for word in WORDS), *((f"▁{word}", -4.0) for word in WORDS)]
        letters = [("▁", -9.0), *((letter, -10.0 - place / 100) for place, letter in enumerate(LETTERS))]
        pieces = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *scores, *letters]
        own = Tokenizer(models.Unigram(pieces, unk_id=3))
        own.pre_tokenizer = pre_tokenizers.Metaspace()
        names = {"bos": "<s>", "pad": "<pad>", "eos": "</s>", "unk": "<unk>", "mask": "<mask>"}
        return PreTrainedTokenizerFast(tokenizer_object=own, **{f"{role}_token": name for role, name in names.items()})

    def test_a_table_gives_the_vectors_of_before(self, tokenizer, tmp_path):
        table = StaticEmbedding(tokenizer, embedding_dim=16)
        model = SentenceTransformer(modules=[table, Normalize()], device="cpu")
        small, report = trimmed(model, tmp_path)
        assert report.tokens < report.before
        np.testing.assert_array_equal(small.encode(TEXTS), model.encode(TEXTS))
        assert small.tokenizer.encode("starreef").tokens == ["▁star", *"reef"]


class TestTables:
    @pytest.fixture
    def model(self, tmp_path):
        (tmp_path / "vocab.txt").write_text("\n".join([*PIECES, *WORDS]))
        tokenizer = Tokenizer(models.WordPiece.from_file(str(tmp_path / "vocab.txt"), unk_token="[UNK]"))
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        rows = torch.randn(tokenizer.get_vocab_size(), 16, generator=torch.Generator().manual_seed(0))
        table = StaticEmbedding(tokenizer, embedding_weights=rows)
        return SentenceTransformer(modules=[table, Normalize()], device="cpu", similarity_fn_name="cosine")

    def test_vectors_are_those_of_before(self, model, tmp_path):
        small, _ = trimmed(model, tmp_path)
        np.testing.assert_array_equal(small.encode(TEXTS), model.encode(TEXTS))
        assert "shark" not in small.tokenizer.get_vocab()
        assert small.tokenizer.encode("shark").tokens == ["s", "##h", "##a", "##r", "##k"]

    def test_tokens_of_fewer_texts_than_asked_are_split(self, model, tmp_path):
        small, report = trimmed(model, tmp_path, min_count=2)
        assert "star" in small.tokenizer.get_vocab()
        assert "melody" not in small.tokenizer.get_vocab()
        assert report.used == sum(
            sum(token in model.tokenizer.encode(text).tokens for text in TEXTS) >= 2
            for token in model.tokenizer.get_vocab()
        )

    def test_texts_without_any_such_token_are_refused(self, model):
        with pytest.raises(UserError, match="is in 9 of the texts"):
            trim_model(model, DOCUMENTS, QUERIES, min_count=9)

    def test_queries_without_the_documents_words_are_told_of(self, model):
        assert trim_model(model, DOCUMENTS, QUERIES).warning is None
        assert trim_model(model, DOCUMENTS, []).warning is None
        assert "of the tokens of the queries" in trim_model(model, ["whale reef"], ["judge jury shark"]).warning


class TestOtherClasses:
    def test_cross_encoders_score_as_before(self, tmp_path):
        model = CrossEncoder(backbone("bert", tmp_path / "bert", "ForSequenceClassification"), device="cpu")
        pairs = [(QUERIES[0], DOCUMENTS[0]), (QUERIES[1], DOCUMENTS[1])]
        small, report = trimmed(model, tmp_path)
        assert report.tokens < report.before
        np.testing.assert_allclose(small.predict(pairs), model.predict(pairs), atol=1e-6)

    def test_a_head_of_segments_finds_its_separator(self, tmp_path):
        bert = Transformer(str(masked_model(tmp_path / "bert", [*PIECES, *WORDS])))
        SentenceTransformer(modules=[bert, Pooling(32)], device="cpu").save_pretrained(str(tmp_path / "base"))
        model = cross_encoder_student(str(tmp_path / "base"), head="segments")
        pairs = [(QUERIES[0], DOCUMENTS[0]), (QUERIES[1], DOCUMENTS[1])]
        small, _ = trimmed(model, tmp_path)
        np.testing.assert_allclose(small.predict(pairs), model.predict(pairs), atol=1e-6)
        assert small[-1].separator == small.tokenizer.sep_token_id != model.tokenizer.sep_token_id

    def test_the_answers_of_a_language_model_keep_their_tokens(self, tmp_path):
        from sentence_transformers.cross_encoder.modules import LogitScore

        bert = Transformer(str(masked_model(tmp_path / "bert", [*PIECES, *WORDS])))
        model = SentenceTransformer(modules=[bert, LogitScore(PIECES.index("whale"), PIECES.index("shark"))])
        cut = trim_model(model, DOCUMENTS, QUERIES).model
        names = cut.tokenizer.convert_ids_to_tokens([cut[1].true_token_id, cut[1].false_token_id])
        assert names == ["whale", "shark"]
        assert len(cut.tokenizer) < len(model.tokenizer)

    def test_a_mask_of_multi_vector_encoders_keeps_the_same_tokens(self, tmp_path):
        from retrodistill.encoders.multi_vector import token_encoder

        model = token_encoder(bi_encoder("bert", tmp_path))
        tokens = sorted(set(model.tokenizer(DOCUMENTS[0], add_special_tokens=False)["input_ids"]))[-2:]
        names = model.tokenizer.convert_ids_to_tokens(tokens)
        mask = next(module for module in model if type(module).__name__ == "MultiVectorMask")
        mask.keep_only_token_ids = tokens
        small, _ = trimmed(model, tmp_path)
        for after, before in zip(small.encode_document(TEXTS), model.encode_document(TEXTS), strict=True):
            np.testing.assert_allclose(after, before, atol=1e-6)
        cut = next(module for module in small if type(module).__name__ == "MultiVectorMask")
        assert small.tokenizer.convert_ids_to_tokens(cut.keep_only_token_ids) == names

    def test_multi_vector_encoders_give_the_same_tokens(self, tmp_path):
        from retrodistill.encoders.multi_vector import token_encoder

        model = token_encoder(bi_encoder("bert", tmp_path))
        small, _ = trimmed(model, tmp_path)
        assert isinstance(small, MultiVectorEncoder)
        for after, before in zip(small.encode(TEXTS), model.encode(TEXTS), strict=True):
            np.testing.assert_allclose(after, before, atol=1e-6)

    def test_a_lexical_half_is_cut_with_the_dense_one(self, tmp_path):
        base = SentenceTransformer(bi_encoder("bert", tmp_path), device="cpu")
        corpus = Texts.from_pairs([(str(row), text) for row, text in enumerate(DOCUMENTS)])
        model = hybrid_student(base, 8, corpus)
        small, report = trimmed(model, tmp_path)
        np.testing.assert_allclose(small.encode(TEXTS), model.encode(TEXTS), atol=1e-6)
        assert all(len(part.weight) == report.tokens for part in small.modules() if hasattr(part, "padding_idx") and
                   part.num_embeddings > 100)  # fmt: skip


class TestSparse:
    """Terms are tokens: their weights stay, and those of others are gone."""

    @pytest.fixture
    def bert(self, tmp_path):
        folder = masked_model(tmp_path / "masked", [*PIECES, *WORDS])
        return Transformer(str(folder), transformer_task="fill-mask")

    def check(self, model, tmp_path, encode):
        small, report = trimmed(model, tmp_path)
        kept = [model.tokenizer.convert_tokens_to_ids(small.tokenizer.convert_ids_to_tokens(token))
                for token in range(report.tokens)]  # fmt: skip
        before, after = (getattr(each, encode)(TEXTS).to_dense().numpy() for each in (model, small))
        np.testing.assert_allclose(after, before[:, kept], atol=1e-6)
        assert after.any()
        assert after.shape[1] == report.tokens < before.shape[1]
        return small

    def test_splade(self, bert, tmp_path):
        model = SparseEncoder(modules=[bert, SpladePooling("max")], device="cpu")
        small = self.check(model, tmp_path, "encode_document")
        assert isinstance(small, SparseEncoder)
        files = (tmp_path / "trimmed").rglob("config.json")
        sizes = {json.loads(file.read_text()).get("vocab_size") for file in files} - {None}
        assert sizes == {small.get_embedding_dimension()}

    @pytest.mark.parametrize("encode", ["encode_query", "encode_document"])
    def test_inference_free_queries(self, bert, tmp_path, encode):
        weights = torch.rand(len(PIECES) + len(WORDS), generator=torch.Generator().manual_seed(1)) + 0.1
        queries = SparseStaticEmbedding(bert.tokenizer, weight=weights)
        routes = {"query": [queries], "document": [bert, SpladePooling("max")]}
        router = Router(routes, default_route=None, allow_empty_key=False)
        model = SparseEncoder(modules=[router], device="cpu", similarity_fn_name="dot")
        self.check(model, tmp_path, encode)

    def test_a_head_after_the_transformer(self, tmp_path):
        bert = Transformer(str(masked_model(tmp_path / "bert", [*PIECES, *WORDS])))
        size = len(PIECES) + len(WORDS)
        torch.manual_seed(0)
        head = Dense(32, size, activation_function=None, module_input_name="token_embeddings")
        pooling = SpladePooling("max", embedding_dimension=size)
        model = SparseEncoder(modules=[bert, head, pooling], device="cpu")
        small = self.check(model, tmp_path, "encode_document")
        assert small[1].out_features == small.get_embedding_dimension()

    def test_lexical_terms(self, bert, tmp_path):
        terms = LexicalTerms(len(PIECES) + len(WORDS), 7.5, bert.tokenizer.all_special_ids)
        model = SparseEncoder(modules=[bert, SpladePooling("max"), terms], device="cpu")
        self.check(model, tmp_path, "encode_document")

    def test_vdr(self, bert, tmp_path):
        pooling = VocabularyPooling(len(PIECES) + len(WORDS), 1000, bert.tokenizer.all_special_ids)
        model = SparseEncoder(modules=[bert, pooling], device="cpu")
        self.check(model, tmp_path, "encode_document")


class TestRefused:
    def test_a_model_without_a_fast_tokenizer(self):
        from sentence_transformers.sentence_transformer.modules import WordEmbeddings
        from sentence_transformers.sentence_transformer.modules.tokenizer import WhitespaceTokenizer

        words = WordEmbeddings(WhitespaceTokenizer(WORDS), torch.zeros(len(WORDS), 4).numpy())
        model = SentenceTransformer(modules=[words, Pooling(4)], device="cpu")
        with pytest.raises(UserError, match="no fast tokenizer"):
            trim_model(model, DOCUMENTS, QUERIES, name="model m")

    def test_two_tokenizers(self, tmp_path):
        tables = []
        for names in (PIECES, [*PIECES, *WORDS]):
            vocabulary = {token: place for place, token in enumerate(names)}
            own = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
            tables.append(StaticEmbedding(own, embedding_dim=4))
        router = Router({"query": [tables[0]], "document": [tables[1]]}, default_route=None)
        with pytest.raises(UserError, match="several tokenizers"):
            trim_model(SentenceTransformer(modules=[router], device="cpu"), DOCUMENTS, QUERIES)

    def test_parts_for_tokens_that_are_not_known(self, tmp_path):
        class Gate(torch.nn.Module):
            def __init__(self, size):
                super().__init__()
                self.gate = torch.nn.Parameter(torch.ones(size))

            def forward(self, features):
                return features

        own = tokenizer_of(ARCHITECTURES["bert"][2])
        table = StaticEmbedding(own, embedding_dim=8)
        model = SentenceTransformer(modules=[table, Gate(len(own))], device="cpu")
        with pytest.raises(UserError, match="a part for each token in its Gate"):
            trim_model(model, DOCUMENTS, QUERIES)

    def test_fewer_embeddings_than_tokens(self, tmp_path):
        model = SentenceTransformer(bi_encoder("bert", tmp_path), device="cpu")
        model[0].auto_model.resize_token_embeddings(20)
        with pytest.raises(UserError, match="20 embeddings"):
            trim_model(model, DOCUMENTS, QUERIES)

    @pytest.mark.parametrize("gated", [False, True])
    def test_re_rankers_that_store_states_of_tokens(self, gated, tmp_path):
        from retrodistill.students.tk import tk_student

        model = tk_student(bi_encoder("bert", tmp_path), DOCUMENTS, gated=gated)
        with pytest.raises(UserError, match="a part for each token"):
            trim_model(model, DOCUMENTS, QUERIES)
