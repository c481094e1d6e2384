import json

import numpy as np
import pytest
import torch
from sentence_transformers import MultiVectorEncoder
from sentence_transformers.multi_vector_encoder.modules import HierarchicalTokenPooling
from sentence_transformers.util import batch_to_device, maxsim

from retrodistill.core.errors import UserError
from retrodistill.encoders.multi_vector import MultiVectorModel, token_encoder
from retrodistill.students.clustering import (
    TokenClusters,
    cluster_means,
    cluster_sizes,
    first_centres,
    k_means,
    vectors_kept,
    ward,
    with_clusters,
)
from retrodistill.students.token_pooling import FixedTokenPooling

LENGTHS = [17, 3, 9, 1, 0, 8]
TEXTS = ["heart and artery with blood pressure", "the orbit of a planet and a moon today.", "violin"]


def ragged(lengths=LENGTHS, width=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.nn.functional.normalize(torch.randn(n, width, generator=generator), dim=1) for n in lengths]


def padded(texts, *, left=False, extra=0, filling=torch.nan):
    most = max(len(one) for one in texts) + extra
    tokens = torch.full((len(texts), most, texts[0].shape[1]), filling)
    mask = torch.zeros(len(texts), most, dtype=torch.bool)
    for row, one in enumerate(texts):
        place = slice(most - len(one), most) if left else slice(0, len(one))
        tokens[row, place], mask[row, place] = one, True
    return tokens, mask


def clustered(module, texts, task="document", **how):
    vectors, mask = module.cluster(*padded(texts, **how), task)
    return [one[there] for one, there in zip(vectors, mask, strict=True)]


def lloyd(points, centers, iterations):
    """Plain k-means of one text, every step spelt out."""
    centers = [center.clone() for center in centers]
    for _ in range(iterations):
        found = [int(np.argmin([float((point - center).square().sum()) for center in centers])) for point in points]
        for which in range(len(centers)):
            members = [point for point, own in zip(points, found, strict=True) if own == which]
            if members:
                centers[which] = torch.stack(members).mean(dim=0)
    return found


@pytest.fixture(scope="module")
def plain(tiny_model):
    return token_encoder(tiny_model)


class TestKMeans:
    @pytest.mark.parametrize("iterations", [1, 2, 10])
    @pytest.mark.parametrize("most", [2, 5])
    def test_is_lloyds_algorithm_from_the_same_centres(self, iterations, most):
        texts = ragged([20, 12, 7])
        tokens, mask = padded(texts, filling=0.0)
        first = first_centres(tokens, mask, most, seed=3)
        counts = torch.full((3,), most)
        found = k_means(tokens, mask, counts, iterations=iterations, seed=3)
        for row, text in enumerate(texts):
            expected = lloyd(text, [text[place] for place in first[row]], iterations)
            assert found[row, : len(text)].tolist() == expected
            assert (found[row, len(text) :] == -1).all()

    def test_ends_where_nothing_moves(self):
        tokens, mask = padded(ragged([30]), filling=0.0)
        found = k_means(tokens, mask, torch.tensor([4]), iterations=100, seed=0)
        means, _ = cluster_means(tokens, found, 4)
        assert torch.cdist(tokens, means).argmin(dim=2).equal(found)

    def test_finds_groups_that_lie_apart(self):
        centers = torch.eye(6)[:4]
        own = torch.tensor([0, 3, 1, 1, 2, 0, 3, 2, 2, 0])
        noise = 0.01 * torch.randn(10, 6, generator=torch.Generator().manual_seed(0))
        tokens = (centers[own] + noise)[None]
        found = k_means(tokens, torch.ones(1, 10, dtype=torch.bool), torch.tensor([4]), iterations=10, seed=0)[0]
        assert (found[:, None] == found).equal(own[:, None] == own)


class TestFirstCentres:
    def test_follow_the_cumulated_squared_distances(self):
        (text,) = ragged([15])
        tokens, mask = padded([text], filling=0.0)
        draws = torch.rand(5, generator=torch.Generator().manual_seed(7)).tolist()
        expected = [int(draws[0] * 15)]
        for draw in draws[1:]:
            nearest = torch.stack([(text - text[place]).square().sum(dim=1) for place in expected]).amin(dim=0)
            shares = np.cumsum(nearest.numpy() / float(nearest.sum()))
            expected.append(int(np.flatnonzero(shares > draw)[0]))
        assert first_centres(tokens, mask, 5, seed=7)[0].tolist() == expected

    def test_are_distinct_tokens(self):
        tokens, mask = padded(ragged([12]), filling=0.0)
        for seed in range(20):
            assert len(set(first_centres(tokens, mask, 12, seed)[0].tolist())) == 12

    def test_other_seeds_give_other_centres(self):
        tokens, mask = padded(ragged([40]), filling=0.0)
        assert len({tuple(first_centres(tokens, mask, 4, seed)[0].tolist()) for seed in range(10)}) > 5


class TestTheMeans:
    def test_are_those_of_the_members_at_unit_length(self):
        (text,) = ragged([14])
        tokens, mask = padded([text], filling=0.0)
        members = k_means(tokens, mask, torch.tensor([4]), iterations=10, seed=0)[0]
        means = torch.stack([text[members == which].mean(dim=0) for which in range(4)])
        (raw,) = clustered(TokenClusters(document=4, normalise=False), [text])
        (unit,) = clustered(TokenClusters(document=4), [text])
        torch.testing.assert_close(raw, means)
        torch.testing.assert_close(unit, means / means.norm(dim=1, keepdim=True))

    def test_a_query_vector_counts_by_the_size_of_its_cluster(self):
        (text,) = ragged([14])
        module = TokenClusters(query=4, document=4, weighted=True)
        vectors, _ = module.cluster(*padded([text], filling=0.0), "query")
        unit, _ = TokenClusters(query=4).cluster(*padded([text], filling=0.0), "query")
        members = k_means(*padded([text], filling=0.0), torch.tensor([4]), iterations=10, seed=0)[0]
        sizes = torch.bincount(members, minlength=4)
        torch.testing.assert_close(vectors[0], unit[0] * (sizes * 4 / 14)[:, None])
        document, _ = module.cluster(*padded([text], filling=0.0), "document")
        torch.testing.assert_close(document, unit)

    def test_weights_keep_the_score_of_equal_tokens(self):
        one, other = torch.eye(6)[0], torch.eye(6)[1]
        query, document = torch.stack([one] * 5 + [other]), torch.stack([0.9 * one, 0.2 * other])
        (vectors,) = TokenClusters(query=2, weighted=True).pool([query], task="query")
        whole = (query @ document.T).max(dim=1).values.mean()
        torch.testing.assert_close((vectors @ document.T).max(dim=1).values.mean(), whole)

    def test_gradients_are_shared_by_the_members_alone(self):
        tokens, mask = padded(ragged([9, 5]), filling=0.0)
        members = k_means(tokens, mask, torch.tensor([3, 3]), iterations=10, seed=0)
        module = TokenClusters(document=3, normalise=False)
        jacobian = torch.autograd.functional.jacobian(lambda given: module.cluster(given, mask)[0], tokens)
        sizes = (members[:, None] == torch.arange(3)[:, None]).sum(dim=2)
        for row in range(2):
            for which in range(3):
                for place in range(9):
                    share = 1 / int(sizes[row, which]) if members[row, place] == which else 0.0
                    torch.testing.assert_close(jacobian[row, which, :, row, place], share * torch.eye(6))
        assert not jacobian[0, :, :, 1].any()
        assert not jacobian[1, :, :, 0].any()

    def test_gradients_pass_the_normalization(self):
        tokens, mask = padded(ragged([6]), filling=0.0)
        weights = torch.randn(1, 2, 6, dtype=torch.float32, generator=torch.Generator().manual_seed(1))
        given = tokens.clone().requires_grad_(True)
        (TokenClusters(document=2).cluster(given, mask)[0] * weights).sum().backward()
        step = 1e-3 * torch.randn(tokens.shape, generator=torch.Generator().manual_seed(2))
        either = [(TokenClusters(document=2).cluster(tokens + way * step, mask)[0] * weights).sum() for way in (1, -1)]
        assert float((given.grad * step).sum()) == pytest.approx(float(either[0] - either[1]) / 2, rel=1e-2)

    def test_half_precision_comes_back_as_it_came(self):
        tokens, mask = padded(ragged([9]), filling=0.0)
        vectors, _ = TokenClusters(document=3).cluster(tokens.half(), mask)
        exact, _ = TokenClusters(document=3).cluster(tokens.half().float(), mask)
        assert vectors.dtype == torch.float16
        assert torch.equal(vectors, exact.half())

    def test_autocast_does_not_reach_them(self):
        tokens, mask = padded(ragged([9]), filling=0.0)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            inside, _ = TokenClusters(document=3).cluster(tokens, mask)
        assert torch.equal(inside, TokenClusters(document=3).cluster(tokens, mask)[0])


class TestBatches:
    @pytest.mark.parametrize("wanted", [4, 0.5])
    @pytest.mark.parametrize("left", [False, True])
    def test_a_text_has_the_same_vectors_alone_and_padded(self, wanted, left):
        module, texts = TokenClusters(document=wanted), ragged()
        together = clustered(module, texts, left=left, extra=5)
        for one, text in zip(together, texts, strict=True):
            alone = module.cluster(text[None], torch.ones(1, len(text), dtype=torch.bool))[0][0] if len(text) else text
            torch.testing.assert_close(one, alone)

    def test_masked_tokens_inside_a_text_do_not_count(self):
        (text,) = ragged([11])
        mask = torch.ones(1, 11, dtype=torch.bool)
        mask[0, [2, 7]] = False
        vectors, _ = TokenClusters(document=3).cluster(text[None], mask)
        torch.testing.assert_close(vectors[0], clustered(TokenClusters(document=3), [text[mask[0]]])[0])

    def test_pooling_stored_vectors_is_the_same(self):
        module, texts = TokenClusters(query=2, document=4), ragged()
        for task in ("query", "document"):
            for one, other in zip(module.pool(texts, task=task), clustered(module, texts, task), strict=True):
                assert torch.equal(one, other)
        torch.testing.assert_close(module.pool_one(texts[0]), clustered(module, texts)[0])

    def test_pooling_a_padded_table_of_stored_vectors(self):
        module = TokenClusters(document=4)
        tokens, mask = padded(ragged([9, 6]), filling=0.0)
        assert torch.equal(module.pool(tokens), module.cluster(tokens, mask)[0])
        assert torch.equal(module.pool(tokens, attention_mask=mask), module.cluster(tokens, mask)[0])

    def test_no_text(self):
        features = {"token_embeddings": torch.zeros(0, 4, 6), "attention_mask": torch.zeros(0, 4)}
        assert TokenClusters(document=2)(dict(features))["token_embeddings"].shape == (0, 4, 6)


class TestNumbersOfVectors:
    def test_fixed(self):
        assert [len(one) for one in clustered(TokenClusters(document=4), ragged())] == [4, 3, 4, 1, 0, 4]

    def test_a_share_is_rounded_up(self):
        assert [len(one) for one in clustered(TokenClusters(document=0.25), ragged())] == [5, 1, 3, 1, 0, 2]

    @pytest.mark.parametrize("percent", [1, 7, 25, 50, 70, 99])
    def test_a_share_is_of_whole_numbers(self, percent):
        lengths = torch.arange(2000)
        expected = [-(-percent * length // 100) for length in range(2000)]
        assert vectors_kept(percent / 100, lengths).tolist() == expected

    def test_short_texts_keep_their_tokens_in_order(self):
        (text,) = ragged([5])
        assert torch.equal(clustered(TokenClusters(document=5, normalise=False), [text])[0], text)
        torch.testing.assert_close(clustered(TokenClusters(document=8), [text])[0], text)

    def test_equal_tokens_are_one_vector(self):
        two = torch.eye(6)[:2]
        (vectors,) = clustered(TokenClusters(document=4), [two[[0, 1, 0, 0, 1, 0, 1]]])
        assert sorted(vectors.tolist()) == sorted(two.tolist())

    def test_queries_and_documents_have_their_own(self):
        module, texts = TokenClusters(query=2, document=4), ragged([9])
        assert [len(clustered(module, texts, task)[0]) for task in ("query", "document", None)] == [2, 4, 4]

    def test_a_role_without_a_number_is_left_alone(self):
        tokens, mask = padded(ragged([9]))
        features = {"token_embeddings": tokens, "attention_mask": mask}
        assert TokenClusters(document=2)(dict(features), task="query")["token_embeddings"] is tokens
        assert TokenClusters(document=2)(dict(features), task="document")["token_embeddings"].shape == (1, 2, 6)


class TestNames:
    def test_fixed_and_shares(self):
        assert cluster_sizes("C8x32") == (8, 32)
        assert cluster_sizes("C25") == (0.25, 0.25)

    @pytest.mark.parametrize("name", ["8x32", "C0x4", "C100", "C8x", "c4x8", ""])
    def test_others_are_refused(self, name):
        with pytest.raises(UserError, match=r"give C8x32 for 8 vectors per query"):
            cluster_sizes(name)

    @pytest.mark.parametrize("wanted", [0, -1, 1.0, 0.0, True, "8"])
    def test_a_number_that_is_none(self, wanted):
        with pytest.raises(UserError, match=r"^document=.*: give a number of vectors from 1, or a share"):
            TokenClusters(document=wanted)

    def test_no_iteration(self):
        with pytest.raises(UserError, match=r"^iterations=0"):
            TokenClusters(document=2, iterations=0)


class TestModels:
    def test_both_roles_are_clustered(self, plain):
        model = MultiVectorModel(with_clusters(plain, "C2x4"), "multi-vector:clustered")
        assert model.encode(TEXTS, "query").lengths.tolist() == [2, 2, 2]
        assert model.encode(TEXTS, "document").lengths.tolist() == [4, 4, 3]

    def test_vectors_do_not_depend_on_the_batch(self, plain):
        model = MultiVectorModel(with_clusters(plain, "C2x4"), "multi-vector:clustered")
        together = model.encode(TEXTS, "document")
        for row, text in enumerate(TEXTS):
            np.testing.assert_allclose(together[row], model.encode([text], "document")[0], atol=1e-5)

    def test_training_sees_what_search_sees(self, plain):
        model = with_clusters(plain, "C2x4").eval()
        found = model(batch_to_device(model.preprocess(TEXTS, task="document"), model.device), task="document")
        stored = model.encode_document(TEXTS)
        for row, one in enumerate(stored):
            there = found["token_embeddings"][row][found["attention_mask"][row]]
            torch.testing.assert_close(there.detach(), one, atol=1e-5, rtol=0)

    def test_as_many_clusters_as_tokens_change_no_score(self, plain):
        clusters = with_clusters(plain, "C50x50")
        scores = [maxsim(model.encode_query(TEXTS), model.encode_document(TEXTS)) for model in (plain, clusters)]
        torch.testing.assert_close(scores[0], scores[1])

    def test_weights_are_shared_and_the_given_model_stays(self, plain):
        clusters = with_clusters(plain, "C2x4")
        assert clusters[0] is plain[0]
        assert [type(module).__name__ for module in plain][-1] == "Normalize"

    def test_clusters_are_replaced(self, plain):
        again = with_clusters(with_clusters(plain, "C2x4"), "C25", normalise=False, seed=3)
        assert [type(module).__name__ for module in again].count("TokenClusters") == 1
        changed = {"query": 0.25, "document": 0.25, "normalise": False, "seed": 3}
        assert again[-1].get_config_dict() == {"iterations": 10} | changed

    def test_a_model_that_pools_is_refused(self, plain):
        pooling = MultiVectorEncoder(modules=[*plain, HierarchicalTokenPooling(2.0)], device="cpu")
        with pytest.raises(UserError, match="pools its tokens by HierarchicalTokenPooling already"):
            with_clusters(pooling, "C2x4")

    def test_saved_and_loaded(self, plain, tmp_path):
        model = with_clusters(plain, "C2x4", iterations=3, seed=5)
        model.save_pretrained(str(tmp_path / "model"), create_model_card=False)
        listed = json.loads((tmp_path / "model" / "modules.json").read_text())
        assert listed[-1]["type"] == "retrodistill.students.clustering.TokenClusters"
        again = MultiVectorEncoder(str(tmp_path / "model"), device="cpu", trust_remote_code=True)
        assert again[-1].get_config_dict() == model[-1].get_config_dict()
        for one, other in zip(again.encode_document(TEXTS), model.encode_document(TEXTS), strict=True):
            np.testing.assert_array_equal(one, other)

    def test_the_contract_tells_sizes_apart(self, plain):
        spaces = {
            MultiVectorModel(with_clusters(plain, *one), "multi-vector:one").document_space
            for one in (["C2x4"], ["C2x5"], ["C50"])
        }
        assert len(spaces) == 3


class TestLoading:
    def test_a_saved_folder_loads_by_its_name_without_remote_code(self, tiny_model, tmp_path):
        from retrodistill.encoders.any_encoder import load_encoder
        from retrodistill.encoders.multi_vector import token_encoder

        model = with_clusters(token_encoder(tiny_model), "C4x8")
        model.save_pretrained(str(tmp_path / "clustered"))
        loaded = load_encoder(f"multi-vector:{tmp_path / 'clustered'}")
        assert loaded.encode(["star planet orbit comet moon nebula gravity rocket galaxy"], "document").lengths == [8]


class TestWard:
    def test_clusters_are_those_of_token_pooling_and_do_not_depend_on_the_batch(self):
        texts = [torch.nn.functional.normalize(text, dim=1) for text in ragged([30, 7, 3])]
        tokens, mask = padded(texts, filling=0.0)
        found = ward(tokens, mask, torch.tensor([5, 4, 3]))
        for row, (text, count) in enumerate(zip(texts, (5, 4, 3), strict=True)):
            own = found[row, : len(text)]
            means = torch.stack([text[own == cluster].mean(dim=0) for cluster in own.unique()])
            expected = FixedTokenPooling(count).pool_one(text)
            best = torch.nn.functional.normalize(means, dim=1) @ expected.T
            torch.testing.assert_close(best.amax(dim=1), torch.ones(count))
            assert sorted(best.argmax(dim=1).tolist()) == list(range(count))
            assert int((own == own[0]).sum()) == 1
            assert (found[row, len(text) :] == -1).all()

    def test_one_cluster_has_all_tokens(self):
        tokens, mask = padded(ragged([9]), filling=0.0)
        assert ward(tokens, mask, torch.tensor([1])).tolist() == [[0] * 9]

    def test_the_means_do_not_depend_on_the_seed(self):
        texts = ragged([25])
        one, other = (clustered(TokenClusters(document=6, method="ward", seed=seed), texts) for seed in (0, 1))
        torch.testing.assert_close(one, other, rtol=0, atol=0)

    def test_equal_tokens_are_fewer_vectors(self):
        (vectors,) = clustered(TokenClusters(document=4, method="ward"), [torch.eye(6)[[0, 1, 0, 0, 1, 0, 1]]])
        assert len(vectors) == 3  # the first token is one of its own

    def test_another_method_is_refused(self):
        with pytest.raises(UserError, match=r"unknown method of clustering 'wards'. Did you mean 'ward'"):
            TokenClusters(document=4, method="wards")
