"""Steps per second of training against the plain trainers of sentence-transformers, on the same batches and loss.

python evaluation/benchmarks/training.py [--steps 40] [--tasks static margins] [--threads 1] [--repeats 5]

Each side trains in a process of its own, in turn with the other: seed, order of batches, optimizer (AdamW), learning
rate, checkpoints, and float32 are the same, and so are the losses, which are compared. `static` is a token table
(30,522 x 384) that learns stored teacher vectors by their squared distance (theirs: `MSELoss` with the vectors in the
dataset); `margins` are the first two layers of MiniLM, which learn margins of given scores (theirs: `MarginMSELoss`).
Time includes making the trainer and writing checkpoints.
"""

from __future__ import annotations

import functools
import math
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from racing import Child, Race, Timed, in_turn, parser, serve, timed, use_threads, versions

DIMENSION = 384
TASKS = {"static": (64, 1e-3, 0.0), "margins": (8, 2e-5, 1.0)}  # batch, learning rate, largest norm of a gradient


def main() -> None:
    """Print a Markdown table."""
    options = parser(__doc__, repeats=5)
    options.add_argument("--steps", type=int, default=40)
    options.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    given = options.parse_args()
    use_threads(given.threads)
    race = Race("training", given, versions("sentence-transformers", "transformers", "torch", "accelerate"))
    script, python = Path(__file__).resolve(), sys.executable
    for task in given.tasks:
        with Child(script, python) as theirs, Child(script, python) as ours:
            sides = [
                functools.partial(side, name, task=task, steps=given.steps)
                for name, side in (("by_sentence_transformers", theirs), ("by_retrodistill", ours))
            ]
            seconds, losses = in_turn(sides, given.repeats)
        expected, found = (np.array(each) for each in losses)
        difference = float(np.abs(expected / found - 1).max())
        if difference > 1e-2:
            raise SystemExit(f"{task}: losses differ by {difference:.1%}: {expected} and {found}")
        agreement = f"losses within {difference:.0e} of each other"
        race.add(f"{task}, a step of {TASKS[task][0]} texts", "sentence-transformers", *seconds, agreement, given.steps)


def by_sentence_transformers(task: str, steps: int) -> Timed:
    """Losses of the plain trainer."""
    from datasets import Dataset
    from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments
    from sentence_transformers.sentence_transformer.losses import MarginMSELoss, MSELoss

    batch, rate, norm = TASKS[task]
    model, columns, labels = material(task, steps * batch)
    loss = MSELoss(model) if task == "static" else MarginMSELoss(model)

    def train() -> list[float]:
        with tempfile.TemporaryDirectory() as folder:
            arguments = SentenceTransformerTrainingArguments(
                output_dir=folder,
                max_steps=steps,
                per_device_train_batch_size=batch,
                learning_rate=rate,
                weight_decay=0.0,
                max_grad_norm=norm,
                seed=0,
                data_seed=0,
                save_steps=math.ceil(steps / 5),
                save_total_limit=2,
                logging_steps=max(1, steps // 50),
                report_to="none",
                disable_tqdm=True,
                use_cpu=True,
                dataloader_pin_memory=False,
            )
            dataset = Dataset.from_dict({**columns, "label": list(labels)})
            trainer = SentenceTransformerTrainer(model=model, args=arguments, train_dataset=dataset, loss=loss)
            trainer.train()
            return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]

    return timed(train)


def by_retrodistill(task: str, steps: int) -> Timed:
    """Losses of our trainer."""
    from retrodistill.training.lists import Lists
    from retrodistill.training.loss import DistillationLoss, TeacherVectors, Term
    from retrodistill.training.scorers import StoredVectorScorer, VectorScorer
    from retrodistill.training.settings import TrainingSettings
    from retrodistill.training.trainer import TextColumns, train

    batch, rate, norm = TASKS[task]
    count = steps * batch
    model, columns, labels = material(task, count)
    settings = TrainingSettings(batch_size=batch, learning_rate=rate, warmup=0, max_gradient_norm=norm)
    if task == "static":  # MSELoss is a mean over dimensions, ours a sum
        teacher = TeacherVectors(labels)
        loss = DistillationLoss(model, [Term("leaf", 1 / DIMENSION)], StoredVectorScorer(True), None, teacher)
    else:
        none, documents = np.full(count, -1), np.tile(np.arange(labels.shape[1], dtype=np.int32), (count, 1))
        lists = Lists(documents, labels, none, none)
        loss = DistillationLoss(model, [Term("margin-mse", student_temperature=1.0)], VectorScorer(True), lists)

    def run() -> list[float]:
        with tempfile.TemporaryDirectory() as folder:
            history = train(model, loss, TextColumns(columns, range(count)), settings, Path(folder))
            return [entry["loss"] for entry in history.losses]

    return timed(run)


def material(task: str, count: int) -> tuple[Any, dict[str, list[str]], np.ndarray]:
    """A model at its start, columns of texts, and what it learns: unit vectors, or scores of the documents."""
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize, StaticEmbedding

    from retrodistill.data import load_collection
    from retrodistill.encoders.loading import load_bi_encoder
    from retrodistill.encoders.vectors import normalized

    generator = np.random.default_rng(0)
    texts = load_collection("demo").documents.texts
    drawn = [texts[row] for row in generator.integers(0, len(texts), count).tolist()]
    if task == "static":
        tokenizer = load_bi_encoder("all-MiniLM-L6-v2").tokenizer.backend_tokenizer
        tokenizer.no_truncation()
        rows = generator.standard_normal((tokenizer.get_vocab_size(), DIMENSION), dtype=np.float32)
        model = SentenceTransformer(modules=[StaticEmbedding(tokenizer, torch.from_numpy(rows)), Normalize()])
        return model, {"text": drawn}, normalized(generator.standard_normal((count, DIMENSION), dtype=np.float32))
    model = load_bi_encoder("all-MiniLM-L6-v2", layers=2)
    model.max_seq_length = 64
    for module in model.modules():  # the sides draw other units: one encodes columns together, the other in turn
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    others = [[texts[row] for row in generator.integers(0, len(texts), count).tolist()] for _ in range(2)]
    columns = {"query": [text[:60] for text in drawn], "document_1": others[0], "document_2": others[1]}
    return model, columns, -np.sort(-generator.random((count, 2), dtype=np.float32), axis=1)


if __name__ == "__main__":
    if "--serve" in sys.argv:
        serve({"by_sentence_transformers": by_sentence_transformers, "by_retrodistill": by_retrodistill})
    else:
        main()
