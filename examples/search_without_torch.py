"""Search a FAISS index without torch: INDEX MODEL QUESTION; before, `prepare INDEX` writes its ids as text."""

import json
import resource
import sys
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

KINDS = {"F32": np.float32, "I8": np.int8}


def encode_with_graph(folder, text):
    """The vector of a text by a model that was exported to ONNX."""
    import onnxruntime

    about = json.loads((folder / "manifest.json").read_text())["about"]
    graph = folder / about["graphs"].get("int8", about["graphs"]["float32"])
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1  # a short text gains nothing from more
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    tokens = Tokenizer.from_file(f"{folder}/tokenizer.json").encode(about["roles"]["query"]["prompt"] + text)
    inputs = {"input_ids": tokens.ids, "attention_mask": tokens.attention_mask, "token_type_ids": tokens.type_ids}
    return session.run(["sentence_embedding"], {name: [inputs[name]] for name in about["reading"]["inputs"]})[0][0]


def tensors(file):
    """The arrays of a safetensors file, by name; only what is used of them is read from disk."""
    content = np.memmap(file, np.uint8, "r")
    start = 8 + int.from_bytes(content[:8], "little")
    about = {name: one for name, one in json.loads(content[8:start].tobytes()).items() if "shape" in one}
    raw = {name: content[start:][slice(*one["data_offsets"])] for name, one in about.items()}
    return {name: raw[name].view(KINDS[one["dtype"]]).reshape(one["shape"]) for name, one in about.items()}


def encode_with_table(folder, text):
    """The mean of the rows of a text's tokens: a static student, trimmed or not."""
    tokenizer = Tokenizer.from_file(f"{folder}/0_StaticEmbedding/tokenizer.json")
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    table, wide = tensors(folder / "0_StaticEmbedding/model.safetensors"), folder / "1_Dense/model.safetensors"
    if "weights" in table:  # int8 rows and their scales
        mean = (table["embeddings"][ids] * table["weights"][ids, None]).mean(0)
    else:
        mean = table["embedding.weight"][ids].mean(0)
    return tensors(wide)["linear.weight"] @ mean if wide.exists() else mean


def main(index, model, question, k=5):
    """The k best documents and their scores."""
    import faiss

    graph = Path(model, "onnx")
    vector = encode_with_graph(graph, question) if graph.is_dir() else encode_with_table(Path(model), question)
    scores, rows = faiss.read_index(f"{index}/index.faiss").search(vector[None] / np.linalg.norm(vector), k)
    ids = Path(index, "ids.txt").read_text(encoding="utf-8").split("\n")
    return dict(zip([ids[row] for row in rows[0]], scores[0].tolist(), strict=True))


if sys.argv[1:2] == ["prepare"]:
    from retrodistill import load_index

    Path(sys.argv[2], "ids.txt").write_text("\n".join(load_index(sys.argv[2]).ids), encoding="utf-8")
elif __name__ == "__main__":
    print(main(*sys.argv[1:]), f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024} MB")
