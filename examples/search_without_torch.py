"""Search a FAISS index without torch: INDEX MODEL QUESTION; before, `prepare INDEX` writes its ids as text."""

import json
import resource
import sys
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer


def encode_with_graph(folder, text):
    """The vector of a text by a model that was exported to ONNX."""
    import onnxruntime

    about = json.loads((folder / "manifest.json").read_text())["about"]
    graph = folder / about["graphs"].get("int8", about["graphs"]["float32"])
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    tokens = Tokenizer.from_file(f"{folder}/tokenizer.json").encode(about["roles"]["query"]["prompt"] + text)
    inputs = {"input_ids": tokens.ids, "attention_mask": tokens.attention_mask, "token_type_ids": tokens.type_ids}
    return session.run(["sentence_embedding"], {name: [inputs[name]] for name in about["reading"]["inputs"]})[0][0]


def encode_with_table(folder, text):
    """That of a static student: the mean of its tokens' rows, which alone are read from disk."""
    content = np.memmap(folder / "model.safetensors", np.uint8, "r")
    tensor = json.loads(content[8 : (start := 8 + int.from_bytes(content[:8], "little"))].tobytes())["embedding.weight"]
    table = content[start:][slice(*tensor["data_offsets"])].view(np.float32).reshape(tensor["shape"])
    return table[Tokenizer.from_file(str(folder / "tokenizer.json")).encode(text, add_special_tokens=False).ids].mean(0)


def main(index, model, question, k=5):
    """The k best documents and their scores."""
    import faiss

    graph, table = Path(model, "onnx"), Path(model, "0_StaticEmbedding")
    vector = encode_with_graph(graph, question) if graph.is_dir() else encode_with_table(table, question)
    scores, rows = faiss.read_index(f"{index}/index.faiss").search(vector[None] / np.linalg.norm(vector), k)
    ids = Path(index, "ids.txt").read_text(encoding="utf-8").split("\n")
    return dict(zip([ids[row] for row in rows[0]], scores[0].tolist(), strict=True))


if sys.argv[1:2] == ["prepare"]:
    from retrodistill import load_index

    Path(sys.argv[2], "ids.txt").write_text("\n".join(load_index(sys.argv[2]).ids), encoding="utf-8")
elif __name__ == "__main__":
    print(main(*sys.argv[1:]), f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024} MB")
