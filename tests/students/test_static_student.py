import subprocess
import sys

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer
from tokenizers import Tokenizer
from tokenizers.models import BPE

from retrodistill.core.errors import UserError
from retrodistill.core.manifest import Manifest
from retrodistill.data import Texts
from retrodistill.encoders import load_encoder
from retrodistill.encoders.loading import load_bi_encoder
from retrodistill.students import save_student, static_student
from retrodistill.students.static import INITIALIZATIONS, fast_tokenizer, inverse_document_frequencies, with_words

WORDS = ["star", "violin", "court", "unheard-of-word"]


@pytest.fixture
def teacher(tiny_model):
    return load_encoder(f"dense:{tiny_model}")


@pytest.fixture
def corpus():
    return Texts.from_pairs([("a", "star star planet"), ("b", "star violin"), ("c", "court")])


class TestTheTokenTable:
    def test_a_row_is_the_teachers_encoding_of_that_token_times_its_idf(self, teacher, corpus):
        rows = static_student(teacher, corpus)[0].embedding.weight.detach().numpy()
        tokenizer = fast_tokenizer(teacher)
        frequency = {"star": 2, "violin": 1, "opera": 0}
        for word, count in frequency.items():
            expected = teacher.encode([word], "document")[0] * np.log1p(3 / (count + 0.5)) / np.log1p(6)
            np.testing.assert_allclose(rows[tokenizer.token_to_id(word)], expected, atol=1e-5)

    def test_flat_leaves_the_idf_out(self, teacher, corpus):
        rows = static_student(teacher, corpus, initialize="teacher-flat")[0].embedding.weight.detach().numpy()
        np.testing.assert_allclose(
            rows[fast_tokenizer(teacher).token_to_id("star")], teacher.encode(["star"], "document")[0], atol=1e-5
        )

    def test_words_are_the_teachers_input_embeddings_times_the_idf(self, teacher, corpus):
        rows = static_student(teacher, corpus, initialize="words")[0].embedding.weight.detach().numpy()
        inputs = teacher.model[0].auto_model.get_input_embeddings().weight.detach().numpy()
        idf = inverse_document_frequencies(fast_tokenizer(teacher), corpus)
        np.testing.assert_allclose(rows, inputs * idf[:, None], rtol=1e-5)

    def test_random_rows_follow_the_seed(self, teacher, corpus):
        tables = [
            static_student(teacher, corpus, initialize="random", seed=seed)[0].embedding.weight.detach().numpy()
            for seed in (0, 0, 1)
        ]
        np.testing.assert_array_equal(tables[0], tables[1])
        assert not np.allclose(tables[0], tables[2])

    def test_a_second_one_is_made_from_the_cache(self, teacher, corpus, monkeypatch):
        first = static_student(teacher, corpus)[0].embedding.weight.detach().numpy()
        monkeypatch.setattr("retrodistill.students.static._encode_tokens", lambda *_: pytest.fail("encoded again"))
        np.testing.assert_array_equal(static_student(teacher, corpus)[0].embedding.weight.detach().numpy(), first)

    def test_tokens_count_once_in_a_document(self, teacher, corpus):
        idf = inverse_document_frequencies(fast_tokenizer(teacher), corpus, block=2)
        place = fast_tokenizer(teacher).token_to_id
        assert idf[place("star")] == pytest.approx(np.log1p(3 / 2.5) / np.log1p(6))
        assert idf[place("opera")] == pytest.approx(1)


class TestWords:
    CORPUS = ("starcourt violin", "STARCOURT, zygote!", "zygote zygote", "starcourt once", "star court")

    @pytest.fixture
    def corpus(self):
        return Texts.from_pairs((str(row), text) for row, text in enumerate(self.CORPUS))

    def tokens(self, teacher, corpus, most):
        old, new = fast_tokenizer(teacher), with_words(fast_tokenizer(teacher), corpus, most)
        return [new.id_to_token(row) for row in range(old.get_vocab_size(), new.get_vocab_size())]

    def test_are_those_that_are_split_or_unknown_and_that_most_documents_have(self, teacher, corpus):
        assert self.tokens(teacher, corpus, 10) == ["starcourt", "zygote"]
        assert self.tokens(teacher, corpus, 1) == ["starcourt"]
        assert self.tokens(teacher, corpus, 0) == []

    def test_known_words_keep_their_rows_and_new_ones_are_encoded_whole(self, teacher, corpus):
        plain, student = (static_student(teacher, corpus, words=words, initialize="teacher-flat") for words in (0, 5))
        before, after = (model[0].embedding.weight.detach().numpy() for model in (plain, student))
        np.testing.assert_array_equal(after[: len(before)], before)
        expected = teacher.encode(["starcourt", "zygote"], "document")
        np.testing.assert_allclose(after[len(before) :], expected, atol=1e-5)
        assert student.tokenize(["a starcourt"])["input_ids"].tolist()[-1] == len(before)

    @pytest.mark.parametrize("initialize", ["words", "fitted", "random"])
    def test_other_tables_have_a_row_for_each(self, teacher, corpus, initialize):
        student = static_student(teacher, corpus, words=5, initialize=initialize)
        size = fast_tokenizer(teacher).get_vocab_size()
        assert student[0].embedding.weight.shape == (size + 2, teacher.dimension)
        assert np.isfinite(student[0].embedding.weight.detach().numpy()).all()

    def test_they_are_saved(self, teacher, corpus, tmp_path):
        student = static_student(teacher, corpus, words=5)
        student.save_pretrained(str(tmp_path))
        texts = ["starcourt zygote", "star"]
        np.testing.assert_array_equal(SentenceTransformer(str(tmp_path)).encode(texts), student.encode(texts))
        encoder = load_encoder(f"static:{tmp_path}")
        np.testing.assert_allclose(encoder.encode(texts, "query"), student.encode(texts), atol=1e-6)

    def test_another_kind_of_tokenizer_is_refused(self, corpus):
        with pytest.raises(UserError, match=r"words: 5 is for models with a WordPiece tokenizer.*this one's is BPE"):
            with_words(Tokenizer(BPE()), corpus, 5)


class TestTheEncoder:
    def test_it_is_a_mean_of_rows_of_unit_length(self, teacher, corpus):
        student = static_student(teacher, corpus)
        rows = student[0].embedding.weight.detach().numpy()
        tokenizer = fast_tokenizer(teacher)
        mean = np.mean([rows[tokenizer.token_to_id(word)] for word in ("star", "violin", "violin")], axis=0)
        np.testing.assert_allclose(student.encode("star violin violin"), mean / np.linalg.norm(mean), atol=1e-6)

    def test_a_long_text_is_read_to_its_end(self, teacher, corpus):
        student = static_student(teacher, corpus)
        long = "star " * 300 + "violin " * 300
        np.testing.assert_allclose(student.encode(long), student.encode("star violin"), atol=1e-5)
        assert not np.allclose(teacher.encode([long], "query"), teacher.encode([f"{long} opera"[::-1]], "query"))

    def test_the_teachers_own_tokenizer_keeps_its_truncation(self, teacher, corpus):
        before = teacher.model.tokenizer.backend_tokenizer.to_str()
        static_student(teacher, corpus)
        assert teacher.model.tokenizer.backend_tokenizer.to_str() == before

    def test_a_dot_teacher_gives_a_student_without_normalization(self, tiny_model, corpus):
        model = load_bi_encoder(tiny_model)
        model.similarity_fn_name = "dot"
        student = static_student(load_encoder(model), corpus)
        assert [type(module).__name__ for module in student] == ["StaticEmbedding"]
        assert str(student.similarity_fn_name) == "dot"

    @pytest.mark.parametrize("initialize", sorted(INITIALIZATIONS))
    def test_saved_it_loads_as_a_plain_sentence_transformer(self, teacher, corpus, initialize, tmp_path):
        student = static_student(teacher, corpus, initialize=initialize)
        texts = [*WORDS, "star " * 300 + "violin"]
        save_student(student, Manifest("student"), tmp_path / "student")
        np.testing.assert_array_equal(
            SentenceTransformer(str(tmp_path / "student"), device="cpu").encode(texts), student.encode(texts)
        )

    @pytest.mark.slow
    def test_a_program_without_retrodistill_gets_the_same_vectors(self, teacher, corpus, tmp_path):
        student = static_student(teacher, corpus)
        texts = [*WORDS, "star " * 300 + "violin"]
        save_student(student, Manifest("student"), tmp_path / "student")
        program = (
            "import sys, numpy as np\n"
            "from sentence_transformers import SentenceTransformer\n"
            "sys.modules['retrodistill'] = None  # any import of it now fails\n"
            f"vectors = SentenceTransformer({str(tmp_path / 'student')!r}, device='cpu').encode({texts!r})\n"
            f"np.save({str(tmp_path / 'vectors.npy')!r}, vectors)\n"
        )
        subprocess.run([sys.executable, "-c", program], check=True, cwd=tmp_path, capture_output=True)
        np.testing.assert_array_equal(np.load(tmp_path / "vectors.npy"), student.encode(texts))


class TestMistakes:
    def test_an_unknown_initialization(self, teacher, corpus):
        with pytest.raises(UserError, match=r"^unknown initialization 'techer'. Did you mean 'teacher'\? Known: "):
            static_student(teacher, corpus, initialize="techer")

    def test_word_embeddings_of_another_width(self, tiny_model, corpus):
        from retrodistill.students import dense_student

        narrow = load_encoder(dense_student(tiny_model, dimension=8))
        with pytest.raises(
            UserError, match=r"has word embeddings of 32 dimensions and vectors of 8; initialize the table"
        ):
            static_student(narrow, corpus, initialize="words")

    @pytest.mark.parametrize("initialize", ["teacher", "words"])
    def test_a_teacher_that_is_a_token_table_itself(self, tiny_static, corpus, initialize):
        with pytest.raises(UserError, match=r"is a token table itself; a static student starts from a transformer"):
            static_student(load_encoder(f"static:{tiny_static}"), corpus, initialize=initialize)
