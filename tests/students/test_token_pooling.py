import numpy as np
import pytest
import torch
from scipy.cluster.hierarchy import fcluster, ward
from sentence_transformers import MultiVectorEncoder
from sentence_transformers.multi_vector_encoder.modules import HierarchicalTokenPooling

from retrodistill.core.errors import UserError
from retrodistill.encoders.multi_vector import MultiVectorModel, token_encoder
from retrodistill.students.clustering import with_clusters
from retrodistill.students.token_pooling import FixedTokenPooling, with_pooling

TEXTS = ["heart and artery with blood pressure", "the orbit of a planet and a moon today.", "violin"]


def unit(count, width=8, seed=0):
    found = np.random.default_rng(seed).standard_normal((count, width)).astype("f4")
    return torch.from_numpy(found / np.linalg.norm(found, axis=1, keepdims=True))


def pooled(tokens, vectors, **settings):
    return FixedTokenPooling(vectors, **settings).pool_one(tokens)


def by_hand(tokens, count):
    """Ward's linkage on cosine distances by scipy, then the mean of each cluster."""
    tokens = tokens.numpy()
    upper = np.triu_indices(len(tokens), 1)
    own = fcluster(ward((1 - tokens @ tokens.T)[upper]), count, criterion="maxclust")
    means = np.stack([tokens[own == one].mean(axis=0) for one in np.unique(own)])
    return means / np.linalg.norm(means, axis=1, keepdims=True)


class TestPooling:
    @pytest.mark.parametrize("count", [1, 3, 7, 12])
    def test_is_wards_linkage_to_so_many_clusters(self, count):
        tokens = unit(13)
        found = pooled(tokens, count, protected=0).numpy()
        np.testing.assert_allclose(found, by_hand(tokens, count), atol=1e-5)

    @pytest.mark.parametrize("tokens", range(2, 40))
    def test_every_number_is_met(self, tokens):
        assert [len(pooled(unit(tokens), count)) for count in range(1, tokens + 3)] == [
            min(count, tokens) for count in range(1, tokens + 3)
        ]

    def test_a_share_is_rounded_up(self):
        assert [len(pooled(unit(count), 0.25)) for count in (3, 4, 5, 12, 13)] == [1, 1, 2, 3, 4]

    def test_protected_tokens_stay_and_count(self):
        tokens = unit(10)
        found = pooled(tokens, 4, protected=2)
        assert len(found) == 4
        torch.testing.assert_close(found[:2], tokens[:2])
        np.testing.assert_allclose(found[2:].numpy(), by_hand(tokens[2:], 2), atol=1e-5)

    def test_one_vector_protects_nothing(self):
        tokens = unit(10)
        torch.testing.assert_close(pooled(tokens, 1)[0], torch.nn.functional.normalize(tokens.mean(dim=0), dim=0))

    def test_short_texts_keep_their_tokens(self):
        tokens = unit(5)
        assert torch.equal(pooled(tokens, 5), tokens)
        assert torch.equal(pooled(tokens, 9), tokens)

    def test_means_without_normalization(self):
        tokens = unit(6)
        torch.testing.assert_close(pooled(tokens, 1, normalise=False)[0], tokens.mean(dim=0))

    def test_is_the_same_again(self):
        assert torch.equal(pooled(unit(30), 8), pooled(unit(30), 8))

    def test_a_whole_factor_is_the_librarys(self):
        tokens = unit(12)
        library = HierarchicalTokenPooling(4, num_protected_tokens=0).pool_one(tokens)
        assert torch.equal(pooled(tokens, 0.25, protected=0), library)

    @pytest.mark.parametrize(
        ("tokens", "vectors", "protected"), [((3, 4, 8), 2, 0), ((4, 8), 0, 0), ((4, 8), 1.5, 0), ((4, 8), 2, -1)]
    )
    def test_what_does_not_fit(self, tokens, vectors, protected):
        with pytest.raises(UserError):
            pooled(torch.ones(tokens), vectors, protected=protected)


class TestModels:
    @pytest.fixture(scope="class")
    def plain(self, tiny_model):
        return token_encoder(tiny_model)

    def test_documents_alone_are_pooled(self, plain):
        before, after = (
            MultiVectorModel(one, "multi-vector:one") for one in (plain, with_pooling(plain, 3, protected=0))
        )
        assert after.encode(TEXTS, "document").lengths.tolist() == [3, 3, 3]
        np.testing.assert_array_equal(after.encode(TEXTS, "query").vectors, before.encode(TEXTS, "query").vectors)
        tokens = torch.from_numpy(before.encode(TEXTS, "document")[1])
        expected = pooled(tokens, 3, protected=0).numpy()
        np.testing.assert_allclose(after.encode(TEXTS, "document")[1], expected, atol=1e-5)

    def test_as_many_vectors_as_clusters_have(self, plain):
        clusters = MultiVectorModel(with_clusters(plain, "C2x4"), "multi-vector:one").encode(TEXTS, "document")
        pooling = MultiVectorModel(with_pooling(plain, 4), "multi-vector:other").encode(TEXTS, "document")
        assert clusters.lengths.tolist() == pooling.lengths.tolist()

    def test_saved_and_loaded(self, plain, tmp_path):
        model = with_pooling(plain, 0.5, protected=2)
        model.save_pretrained(str(tmp_path / "model"), create_model_card=False)
        again = MultiVectorEncoder(str(tmp_path / "model"), device="cpu", trust_remote_code=True)
        settings = {"vectors": 0.5, "protected": 2, "normalise": True, "tasks": ["document"]}
        assert again[-1].get_config_dict() == settings
        for one, other in zip(again.encode_document(TEXTS), model.encode_document(TEXTS), strict=True):
            np.testing.assert_array_equal(one, other)

    def test_a_model_that_pools_is_refused(self, plain):
        with pytest.raises(UserError, match="pools its tokens by TokenClusters already"):
            with_pooling(with_clusters(plain, "C2x4"), 4)

    def test_no_number(self):
        with pytest.raises(UserError, match="vectors=0: give a number of vectors from 1"):
            FixedTokenPooling(0)
