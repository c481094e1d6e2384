"""Recorded forward passes against what transformers returns itself."""

import pytest
import torch
from backbones import backbone
from transformers import AutoModel

from retrodistill.core.errors import UserError
from retrodistill.encoders.inner_states import recording
from retrodistill.encoders.loading import load_bi_encoder

IDS = torch.tensor([[2, 5, 6, 7, 3], [2, 8, 3, 0, 0]])
INPUTS = {"input_ids": IDS, "attention_mask": (IDS != 0).long()}


def hooks_of(model):
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


@pytest.mark.parametrize("name", ["bert", "distilbert", "roberta", "mpnet", "modernbert"])
def test_states_are_those_of_transformers(name, tmp_path):
    model = AutoModel.from_pretrained(backbone(name, tmp_path))
    with recording(model, heads=False) as passes:
        found = model(**INPUTS, output_hidden_states=True)
    (one,) = passes
    assert one.mask.tolist() == (IDS != 0).tolist()
    wanted = found.hidden_states  # of models with a norm behind their layers, the last is behind that
    for own, other in zip(one.states[:-1], wanted[:-1], strict=True):
        torch.testing.assert_close(own, other)
    assert len(one.states) == len(wanted)


def test_attention_is_the_softmax_of_the_products_of_recorded_heads(tiny_model):
    model = load_bi_encoder(tiny_model)[0].auto_model.eval()
    model.set_attn_implementation("eager")
    model(**INPUTS, output_attentions=True)  # transformers keeps hooks of its own from then on
    before = hooks_of(model)
    with recording(model, heads=True) as passes:
        wanted = model(**INPUTS, output_attentions=True).attentions
        model(**INPUTS)
    assert len(passes) == 2
    for heads, attention in zip(passes[0].heads, wanted, strict=True):
        queries, keys, _ = heads
        logits = queries @ keys.mT / queries.shape[-1] ** 0.5
        logits = logits.masked_fill(~passes[0].mask[:, None, None, :], -torch.inf)
        torch.testing.assert_close(logits.softmax(-1), attention)
    with recording(model, heads=True):
        pass
    assert hooks_of(model) == before
    assert "forward" not in vars(model)


def test_passes_without_tokens_and_layers_without_such_heads(tiny_model, tmp_path):
    model = load_bi_encoder(tiny_model)[0].auto_model
    with recording(model, heads=False), pytest.raises(UserError, match=r"begins with hidden states"):
        model(inputs_embeds=torch.zeros(1, 2, 32), attention_mask=torch.ones(1, 2))
    other = recording(AutoModel.from_pretrained(backbone("modernbert", tmp_path)), heads=True)
    with pytest.raises(UserError, match=r"^objectives: attention heads of .*Model cannot be taken apart"), other:
        pass
