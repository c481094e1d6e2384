import numpy as np
import pytest
import torch

from retrodistill.core.errors import UserError
from retrodistill.encoders.loading import load_bi_encoder
from retrodistill.encoders.modules import keep_first_layers


class TestKeepFirstLayers:
    def test_the_first_layer_stays_and_the_second_goes(self, tiny_model):
        whole, cut = load_bi_encoder(tiny_model), load_bi_encoder(tiny_model)
        keep_first_layers(cut, 1)
        names = [name for name, _ in cut.named_parameters()]
        assert any("layer.0." in name for name in names)
        assert not any("layer.1." in name for name in names)
        weights = dict(whole.named_parameters())
        assert all(torch.equal(tensor, weights[name]) for name, tensor in cut.named_parameters())

    def test_it_saves_and_loads_with_the_same_output(self, tiny_model, tmp_path):
        cut = load_bi_encoder(tiny_model, layers=1)
        cut.save_pretrained(str(tmp_path / "cut"), create_model_card=False)
        again = load_bi_encoder(str(tmp_path / "cut"))
        texts = ["star and planet", "violin"]
        np.testing.assert_array_equal(again.encode(texts), cut.encode(texts))
        assert not np.allclose(cut.encode(texts), load_bi_encoder(tiny_model).encode(texts))

    @pytest.mark.parametrize("layers", [0, 3, -1])
    def test_as_many_as_there_are(self, tiny_model, layers):
        with pytest.raises(UserError, match=rf"^layers={layers}: the model has 2; choose 1 to 2.$"):
            load_bi_encoder(tiny_model, layers=layers)

    def test_a_token_table_has_none(self, tiny_static):
        with pytest.raises(UserError, match=r"^a model of StaticEmbedding has no layers to cut; leave 'layers' out.$"):
            load_bi_encoder(tiny_static, layers=1)
