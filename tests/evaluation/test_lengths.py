import json

import numpy as np
import pytest

from retrodistill.core.errors import UserError
from retrodistill.encoders.length_adaptive import LengthAdaptiveSettings
from retrodistill.encoders.loading import load_bi_encoder
from retrodistill.encoders.modules import save_pretrained
from retrodistill.encoders.token_dropping import keep_share, make_length_adaptive
from retrodistill.evaluation.lengths import LengthCost, choose_length, measure_lengths

TEXTS = ["what star and what planet in what orbit and a comet today", "violin and chord and melody today", "bread"]
COSTS = [LengthCost("all", 1.0, 10.0, 40.0, 1.0), LengthCost("half", 0.5, 18.0, 25.0, 0.9)]


@pytest.fixture
def folder(tiny_model, tmp_path):
    model = load_bi_encoder(tiny_model)
    make_length_adaptive(model, LengthAdaptiveSettings(layers=[1], keep=[0.55, 0.25], fewest=2))
    save_pretrained(model, tmp_path / "model")
    return tmp_path / "model"


class TestMeasured:
    def test_all_tokens_tenths_and_the_fewest(self, folder):
        costs = measure_lengths(f"dense:{folder}@keep-0.5", TEXTS)
        assert [cost.keep for cost in costs] == [1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.25]
        assert costs[5].model == f"dense:{folder}@keep-0.5"
        assert all(cost.ms > 0 and cost.per_second > 0 for cost in costs)
        whole = load_bi_encoder(str(folder))
        half = keep_share(whole, 0.5)
        assert costs[5].cosine == pytest.approx((whole.encode(TEXTS) * half.encode(TEXTS)).sum(axis=1).mean(), abs=1e-5)
        assert costs[0].cosine == pytest.approx(1)
        assert np.argmin([cost.cosine for cost in costs]) > 0

    def test_what_drops_no_tokens(self, tiny_model, folder):
        with pytest.raises(UserError, match="drops no tokens"):
            measure_lengths(f"dense:{tiny_model}", TEXTS)
        with pytest.raises(UserError, match="is not a dense encoder"):
            measure_lengths(f"static:{tiny_model}", TEXTS)
        with pytest.raises(UserError, match="no query to time"):
            measure_lengths(f"dense:{folder}", [], "query")


class TestChosen:
    @pytest.mark.parametrize(
        ("limits", "model"),
        [({}, "all"), ({"ms": 40}, "all"), ({"ms": 30}, "half"), ({"per_second": 12}, "half"), ({"ms": 25}, "half")],
    )
    def test_is_the_largest_share_within_the_limits(self, limits, model):
        assert choose_length(COSTS, **limits).model == model

    @pytest.mark.parametrize("limits", [{"ms": 20}, {"per_second": 20}, {"ms": 30, "per_second": 20}])
    def test_none_is_fast_enough(self, limits):
        with pytest.raises(UserError, match=r"half takes 25 ms for a text alone and encodes 18 texts per second"):
            choose_length(COSTS, **limits)


class TestTheCommand:
    def test_prints_the_shares_and_the_choice(self, call, folder, tiny_folder):
        code, printed, _ = call("lengths", f"dense:{folder}", "--collection", tiny_folder, "--ms", "1e6")
        assert code == 0
        assert len(printed.splitlines()) == 11
        assert printed.splitlines()[-1] == f"use dense:{folder}@keep-1"

    @pytest.mark.slow
    def test_as_json_without_a_limit(self, call, folder, tiny_folder):
        _, printed, _ = call("lengths", f"dense:{folder}", "--collection", tiny_folder, "--queries", "--json")
        found = json.loads(printed)
        assert found["chosen"] is None
        assert len(found["lengths"]) == 9

    @pytest.mark.slow
    def test_a_limit_that_no_share_keeps(self, call, folder, tiny_folder):
        code, _, said = call("lengths", f"dense:{folder}", "--collection", tiny_folder, "--per-second", "1e9")
        assert code == 2
        assert "no share of the tokens is within the limit" in said
