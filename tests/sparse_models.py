"""Tiny sparse encoders: SPLADE over a BERT of width 32, and the same documents with inference-free queries."""

import torch
from sentence_transformers import SparseEncoder
from sentence_transformers.base.modules import Router, Transformer
from sentence_transformers.sparse_encoder.modules import SparseStaticEmbedding, SpladePooling
from transformers import BertConfig, BertForMaskedLM, BertTokenizerFast

WORDS = """
    a about all and appeal artery blood bread butter by cello cheese cholesterol chord comet contract coral court
    current drum flour flute for galaxy garlic gravity heart in is island judge jury lawyer melody moon nebula new
    of olive onion opera orbit pepper piano planet plankton pressure pulse recipe reef rhythm rocket shark shore
    shows star statute stroke study sugar telescope tenor that the tide trial valve vein verdict vessel violin was
    wave whale what with witness
"""  # those of the tiny collection
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", "today", *WORDS.split()]


def masked_model(folder, vocabulary=VOCABULARY, length=64):
    """Folder of a masked language model whose head favors the tokens that it reads, so that it can search."""
    torch.manual_seed(0)
    folder.mkdir(parents=True)
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
    )
    model = BertForMaskedLM(config)
    with torch.no_grad():
        model.bert.embeddings.word_embeddings.weight.mul_(20)  # tied to the head
        model.cls.predictions.bias.fill_(-4.0)  # about one term in six
    model.save_pretrained(str(folder))
    BertTokenizerFast(str(folder / "vocab.txt"), model_max_length=length).save_pretrained(str(folder))
    return folder


def splade(folder, activation="relu", **settings):
    bert = Transformer(str(masked_model(folder)), transformer_task="fill-mask")
    return SparseEncoder(modules=[bert, SpladePooling("max", activation)], device="cpu", **settings)


def inference_free(folder, weights=None, activation="relu", length=64, **settings):
    """Documents by SPLADE, queries by a weight per token, no route by default."""
    bert = Transformer(str(masked_model(folder, length=length)), transformer_task="fill-mask")
    if weights is None:
        weights = torch.rand(len(VOCABULARY), generator=torch.Generator().manual_seed(1)) + 0.1
    router = Router(
        {
            "query": [SparseStaticEmbedding(bert.tokenizer, weight=weights.clone())],
            "document": [bert, SpladePooling("max", activation)],
        },
        default_route=None,
        allow_empty_key=False,
    )
    return SparseEncoder(modules=[router], device="cpu", similarity_fn_name="dot", **settings)


def saved(model, folder):
    model.save_pretrained(str(folder), create_model_card=False)
    return f"sparse:{folder}"
