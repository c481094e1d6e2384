"""Tiny transformers of several architectures over the tiny collection's words, each with its tokenizer."""

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from topics import FILLERS, TOPICS
from transformers import PreTrainedTokenizerFast

WORDS = [*sorted({word for topic in TOPICS.values() for word in topic}), *FILLERS, "what", "all", "about", "today"]
TEXTS = [" ".join(WORDS), ". ".join(WORDS), *WORDS]
SIZES = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 64}
DISTILLED = {"dim": 32, "n_layers": 4, "n_heads": 2, "hidden_dim": 64}
RELATIVE = {**SIZES, "relative_attention": True, "pos_att_type": ["c2p", "p2c"], "position_biased_input": False}
DECODER = {**SIZES, "num_key_value_heads": 1, "head_dim": 16}
# architecture -> (prefix of its classes, settings of its configuration, special tokens by role)
BRACKETS = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
ANGLES = {"cls": "<s>", "pad": "<pad>", "sep": "</s>", "unk": "<unk>", "mask": "<mask>"}
ARCHITECTURES = {
    "modernbert": ("ModernBert", {**SIZES, "global_attn_every_n_layers": 3, "local_attention": 8}, BRACKETS),
    "bert": ("Bert", SIZES, BRACKETS),
    "distilbert": ("DistilBert", DISTILLED, BRACKETS),
    "roberta": ("Roberta", SIZES, ANGLES),
    "xlm-roberta": ("XLMRoberta", SIZES, ANGLES),
    "mpnet": ("MPNet", SIZES, ANGLES),
    "deberta-v2": ("DebertaV2", RELATIVE, BRACKETS),
    "qwen3": ("Qwen3", DECODER, {"pad": "<|endoftext|>", "eos": "<|endoftext|>", "unk": "<|unk|>"}),
}
LONGEST = 80  # positions, of which some architectures reserve two


def tokenizer_of(specials, *, on_left=False):
    """A byte-pair tokenizer, without token types, that frames texts and pairs as the special tokens say."""
    tokens = list(dict.fromkeys(specials.values()))
    backend = Tokenizer(models.BPE(unk_token=specials["unk"]))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=True), decoders.ByteLevel()
    backend.train_from_iterator(TEXTS, trainers.BpeTrainer(vocab_size=400, special_tokens=tokens, show_progress=False))
    place = {token: backend.token_to_id(token) for token in tokens}
    if "cls" in specials:
        first, last = specials["cls"], specials["sep"]
        single, pair, used = f"{first} $A {last}", f"{first} $A {last} $B {last}", [first, last]
    else:
        last = specials["eos"]
        single, pair, used = f"$A {last}", f"$A $B {last}", [last]
    backend.post_processor = processors.TemplateProcessing(
        single=single, pair=pair, special_tokens=[(token, place[token]) for token in used]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        model_max_length=64,
        padding_side="left" if on_left else "right",
        model_input_names=["input_ids", "attention_mask"],
        **{f"{role}_token": token for role, token in specials.items()},
    )


def backbone(architecture, folder, head="Model"):
    """Save a tiny transformer, with a ``head`` such as ``ForMaskedLM``; the folder's path."""
    prefix, settings, specials = ARCHITECTURES[architecture]
    torch.manual_seed(0)
    tokenizer = tokenizer_of(specials, on_left="cls" not in specials)
    ids = {f"{role}_token_id": tokenizer.convert_tokens_to_ids(token) for role, token in specials.items()}
    ids = {name: value for name, value in ids.items() if name in ("pad_token_id", "cls_token_id", "sep_token_id")}
    config = getattr(transformers, f"{prefix}Config")(
        vocab_size=len(tokenizer), max_position_embeddings=LONGEST, **settings, **ids
    )
    if head == "ForSequenceClassification":
        config.num_labels = 1
    model = getattr(transformers, f"{prefix}{head}")(config).eval()
    model.save_pretrained(str(folder))
    tokenizer.save_pretrained(str(folder))
    return str(folder)


def bi_encoder(architecture, folder):
    """Save a tiny bi-encoder: mean pooling, or the last token's of a decoder; the folder's path."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Transformer
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling

    transformer = Transformer(backbone(architecture, folder / "plain"), max_seq_length=64)
    pooling = Pooling(32, "mean" if "cls" in ARCHITECTURES[architecture][2] else "lasttoken")
    model = SentenceTransformer(modules=[transformer, pooling, Normalize()], device="cpu")
    model.save_pretrained(str(folder / "bi-encoder"), create_model_card=False)
    return str(folder / "bi-encoder")
