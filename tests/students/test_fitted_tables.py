import numpy as np
import pytest
import torch

from retrodistill.core.errors import UserError
from retrodistill.data import Texts
from retrodistill.encoders import load_encoder
from retrodistill.encoders.vector_files import About, VectorFile, VectorTable
from retrodistill.students import static_student
from retrodistill.students.static import (
    _PENALTIES,
    _left_out,
    _shares,
    fast_tokenizer,
    fitted_rows,
    inverse_document_frequencies,
)


@pytest.fixture
def encoder(tiny_model):
    return load_encoder(f"dense:{tiny_model}")


@pytest.fixture
def problem(tiny, encoder):
    """Shares of tokens, squared weights, vectors."""
    tokenizer = fast_tokenizer(encoder)
    frequencies = inverse_document_frequencies(tokenizer, tiny.documents)
    shares = _shares(tokenizer, tiny.documents.texts).toarray()
    return tokenizer, shares, frequencies, encoder.encode(tiny.documents.texts, "document").astype(np.float64)


def ridge(shares, weights, targets, penalty):
    """The primal solution: scaled columns, normal equations, scaled back."""
    scaled = shares * weights
    rows = np.linalg.solve(scaled.T @ scaled + penalty * np.eye(len(weights)), scaled.T @ targets)
    return rows * weights[:, None]


class TestFitting:
    def test_shares_times_rows_are_means(self, problem, tiny):
        tokenizer, shares, _, _ = problem
        ids = tokenizer.encode(tiny.documents.texts[3], add_special_tokens=False).ids
        rows = np.random.default_rng(0).standard_normal((shares.shape[1], 4))
        np.testing.assert_allclose(shares[3] @ rows, rows[ids].mean(axis=0))

    def test_it_solves_the_ridge_regression_of_one_of_its_penalties(self, problem, tiny):
        tokenizer, shares, frequencies, targets = problem
        found = fitted_rows(tokenizer, tiny.documents, targets, frequencies)
        scale = np.trace((shares * frequencies**2) @ shares.T) / len(shares)
        seen = shares.any(axis=0)
        errors = [np.abs((ridge(shares, frequencies, targets, one * scale) - found)[seen]).max() for one in _PENALTIES]
        assert min(errors) < 1e-5

    def test_leaving_out_is_fitting_without(self, problem):
        _, shares, frequencies, targets = problem
        kernel = (shares * frequencies**2) @ shares.T
        values, directions = np.linalg.eigh(kernel)
        said = _left_out(values, directions, directions.T @ targets, targets, 0.01)
        cosines = []
        for row in range(len(shares)):
            others = np.delete(np.arange(len(shares)), row)
            predicted = shares[row] @ ridge(shares[others], frequencies, targets[others], 0.01)
            cosines.append(predicted @ targets[row] / np.linalg.norm(predicted) / np.linalg.norm(targets[row]))
        assert said == pytest.approx(np.mean(cosines), abs=1e-6)

    def test_a_document_without_text_does_no_harm(self, problem):
        tokenizer, _, frequencies, targets = problem
        corpus = Texts.from_pairs([("a", "star planet"), ("b", ""), ("c", "violin piano")])
        assert np.isfinite(fitted_rows(tokenizer, corpus, targets[:3], frequencies)).all()

    def test_a_text_of_tokens_that_no_document_has_can_be_learned(self, problem, tiny):
        tokenizer, shares, frequencies, targets = problem
        rows = fitted_rows(tokenizer, tiny.documents, targets, frequencies)
        unseen = ~shares.any(axis=0)
        assert unseen.any()
        np.testing.assert_allclose(rows[unseen], np.tile(targets.mean(axis=0) / 1000, (unseen.sum(), 1)), rtol=1e-5)
        mean = torch.from_numpy(rows[unseen][:2]).mean(dim=0, keepdim=True).requires_grad_()
        unit = torch.nn.functional.normalize(torch.nn.functional.normalize(mean))  # the student's, and the objective's
        (unit - torch.from_numpy(targets[:1])).square().sum().backward()
        assert torch.isfinite(mean.grad.square()).all()  # which AdamW keeps in float32


class TestAStudentOfVectors:
    @pytest.fixture
    def vectors(self, tiny, encoder):
        table = VectorTable(tiny.documents.ids, encoder.encode(tiny.documents.texts, "document"))
        return VectorFile("vectors:api", table, None, About(model="acme/embed-1")).bind(tiny)

    def test_it_starts_near_the_vectors(self, vectors, tiny, encoder):
        model = static_student(vectors, tiny.documents, initialize="fitted", tokenizer=fast_tokenizer(encoder))
        student = load_encoder(model)
        texts = tiny.documents.texts
        cosines = np.sum(student.encode(texts, "document") * vectors.encode(texts, "document"), axis=1)
        assert (student.dimension, student.similarity) == (32, "cosine")
        assert cosines.mean() > 0.95

    @pytest.mark.parametrize("initialize", ["teacher", "words"])
    def test_it_cannot_start_from_a_model_that_is_not_there(self, vectors, tiny, encoder, initialize):
        with pytest.raises(UserError, match=r"^vectors:api has vectors and no model: .* and initialize: fitted.$"):
            static_student(vectors, tiny.documents, initialize=initialize, tokenizer=fast_tokenizer(encoder))
        with pytest.raises(UserError, match=r"needs another model's tokenizer"):
            static_student(vectors, tiny.documents, initialize="fitted")
