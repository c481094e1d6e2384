"""Objectives over classes of texts. Pseudo-classes add detail where there are too few real classes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from retrodistill.core.errors import UserError
from retrodistill.objectives.lists import at_least_float32, full_mask, log_softmax
from retrodistill.objectives.registry import objective


@dataclass(frozen=True)
class PseudoClasses:
    """Each class split along linear projections of the teacher's embeddings (LELP, arXiv 2409.20449).

    Attributes:
        centers: (classes, d) float32 mean teacher embedding of each class.
        directions: (classes, parts, d) float32 projections; a text belongs to the part with its largest projection.
        scales: (classes,) float32 root mean square of the projections within the class.
    """

    centers: np.ndarray
    directions: np.ndarray
    scales: np.ndarray

    def targets(self, embeddings: Tensor, class_probabilities: Tensor, temperature: float = 1.0) -> Tensor:
        """The teacher's distribution over pseudo-classes: (batch, classes x parts) float32, parts of a class together.

        ``p_cs = p_c softmax_s(<h - center_c, direction_cs> / (scale_c temperature))``: over the parts of a class it
        sums to the teacher's probability of the class. Takes (batch, d) teacher embeddings h and their (batch, classes)
        probabilities p. Other shapes, and a temperature that is not above 0, are a `UserError`.
        """
        if not temperature > 0:
            raise UserError(f"temperature={temperature}: it must be above 0.")
        count, width = self.centers.shape
        if embeddings.shape[1:] != (width,) or class_probabilities.shape != (len(embeddings), count):
            raise UserError(
                f"embeddings of shape {tuple(embeddings.shape)} with class probabilities of shape "
                f"{tuple(class_probabilities.shape)}; wanted (batch, {width}) and (batch, {count})."
            )
        projections, _, scales = self._projected(at_least_float32(embeddings))
        parts = torch.softmax(projections / (scales[:, None] * temperature), dim=2)
        return (at_least_float32(class_probabilities)[:, :, None] * parts).flatten(1)

    def logits(self, embeddings: Tensor, temperature: float = 1.0) -> Tensor:
        """(batch, classes x parts) float32 log-probabilities of the pseudo-classes for (batch, d) embeddings.

        ``log softmax_c(<h, center_c> / temperature) + log softmax_s(<h - center_c, direction_cs> / scale_c)``: the
        logarithm of `targets` when the class probabilities are the softmax of the products with the centers. The
        embeddings are in the teacher's space; the class temperature is above 0.
        """
        if embeddings.shape[1:] != self.centers.shape[1:]:
            raise UserError(
                f"embeddings of shape {tuple(embeddings.shape)} for pseudo-classes of width {self.centers.shape[1]}; "
                "objective 'lelp' is for students of the teacher's width (dimension: space), without matryoshka."
            )
        embeddings = at_least_float32(embeddings)
        projections, centers, scales = self._projected(embeddings)
        classes = torch.log_softmax(embeddings @ centers.T / temperature, dim=1)
        return (classes[:, :, None] + torch.log_softmax(projections / scales[:, None], dim=2)).flatten(1)

    def _projected(self, embeddings: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(batch, classes, parts) projections, and the centers and scales on the embeddings' device."""
        centers, directions, scales = (
            torch.from_numpy(part).to(embeddings) for part in (self.centers, self.directions, self.scales)
        )
        return torch.einsum("bcd,csd->bcs", embeddings[:, None, :] - centers, directions), centers, scales


def pseudo_classes(
    embeddings: np.ndarray, labels: np.ndarray, parts: int, *, weights: np.ndarray | None = None, seed: int = 0
) -> PseudoClasses:
    """Find the projections that split each class (LELP, arXiv 2409.20449).

    For each class: center its teacher embeddings, project out the row space of the teacher's class weights (a student
    learns that part from the class probabilities), keep the `parts` principal directions and rotate them at random to
    spread the variance over the parts. The steps follow summaries of the paper. The normalization (unit root mean
    square per class) is this package's choice.

    Args:
        embeddings: (texts, d) teacher embeddings of the training texts.
        labels: (texts,) integer class of each, from 0 without a gap.
        parts: Pseudo-classes per class, 2 or more.
        weights: (classes, d) weights of the teacher's last layer, if it has one.
        seed: Seed of the random rotations.

    Raises:
        UserError: The shapes differ, parts out of range, or a class that spans fewer than `parts` directions.
    """
    if embeddings.ndim != 2 or labels.shape != embeddings.shape[:1] or not len(labels):
        raise UserError(f"embeddings of shape {embeddings.shape} and labels of shape {labels.shape}; (n, d) and (n,).")
    count = int(labels.max()) + 1
    if set(np.unique(labels)) != set(range(count)):
        raise UserError("labels are not 0, 1, .. without a gap; number the classes that have texts.")
    if parts < 2:
        raise UserError(f"parts={parts}: a class is split into at least 2.")
    seen = _row_space(weights, embeddings.shape[1])
    generator = np.random.default_rng(seed)
    centers, directions, scales = [], [], []
    for label in range(count):
        rows = embeddings[labels == label].astype(np.float64)
        center = rows.mean(axis=0)
        rest = (rows - center) - (rows - center) @ seen.T @ seen
        _, strengths, principal = np.linalg.svd(rest, full_matrices=False)
        rank = int((strengths > 1e-6 * max(strengths[0], 1e-30)).sum())
        if rank < parts:
            raise UserError(
                f"class {label}: its {len(rows)} texts spread over {rank} directions, and {parts} parts need as many; "
                "lower parts or take more texts."
            )
        rotation = np.linalg.qr(generator.standard_normal((parts, parts)))[0]
        directions.append(rotation @ principal[:parts])
        centers.append(center)
        scales.append(np.sqrt(((rest @ directions[-1].T) ** 2).mean()))
    return PseudoClasses(*(np.asarray(part, dtype=np.float32) for part in (centers, directions, scales)))


def lelp(logits: Tensor, targets: Tensor, *, student_temperature: float = 1.0) -> Tensor:
    """LELP's loss: KL divergence from the teacher's pseudo-class distribution to the student's (arXiv 2409.20449).

    ``mean_b sum_k p_k (log p_k - log softmax(z / T)_k)``, in nats, 0 or more. Both are (batch, classes x parts): the
    student's logits z and the probabilities p of `PseudoClasses.targets`.
    """
    if logits.ndim != 2 or logits.shape != targets.shape:
        raise UserError(
            f"logits of shape {tuple(logits.shape)}, targets of shape {tuple(targets.shape)}; both are (batch, classes "
            "x parts)."
        )
    logs = log_softmax(logits, full_mask(logits, None), student_temperature)
    targets = at_least_float32(targets)
    return (torch.special.xlogy(targets, targets) - targets * logs).sum(dim=1).mean()


@objective(
    "lelp",
    "pseudo-classes along linear projections of the teacher's embeddings (LELP, arXiv 2409.20449)",
    ("student", "teacher", "classes", "student_temperature"),
    sees="embeddings",
)
def pseudo_class_alignment(student: Tensor, teacher: Tensor, classes: PseudoClasses, temperature: float) -> Tensor:
    """LELP for a student in the teacher's space: the teacher's projections classify both (batch, d) embeddings.

    The paper's student learns a layer of its own for the pseudo-classes. Parameters of a loss are neither saved nor
    resumed, so here the teacher's centers and directions classify both sides, and only the student's embedding learns.
    The result is 0 with a gradient of 0 where the embeddings are equal.
    """
    logits = classes.logits(student, temperature)
    teacher = at_least_float32(teacher)
    probabilities = torch.softmax(teacher @ torch.from_numpy(classes.centers).to(teacher).T / temperature, dim=1)
    return lelp(logits, classes.targets(teacher, probabilities))


def classes_of(
    embeddings: np.ndarray, documents: np.ndarray, parts: int, *, largest: int = 1024, seed: int = 0
) -> PseudoClasses:
    """Pseudo-classes of training texts. The class of a text is its relevant document.

    Args:
        embeddings: (texts, d) teacher embeddings.
        documents: (texts,) integer corpus position of the relevant document, -1 where none is known.
        parts: Pseudo-classes per class, 2 or more.
        largest: Maximum number of classes, those with the most texts: a step costs texts x classes x parts products.
        seed: Seed of the random rotations.

    Raises:
        UserError: No document is relevant to more than `parts` different texts.
    """
    known = np.flatnonzero(documents >= 0)
    # Equal texts span no direction, so a class counts its distinct embeddings. A random projection distinguishes them
    # without sorting whole vectors.
    projected = embeddings[known] @ np.random.default_rng(seed).standard_normal(embeddings.shape[1])
    different = known[np.unique(np.column_stack([documents[known], projected]), axis=0, return_index=True)[1]]
    names, sizes = np.unique(documents[different], return_counts=True)
    names = np.sort(names[np.argsort(-sizes, kind="stable")][: min(largest, int((sizes > parts).sum()))])
    if not len(names):
        raise UserError(
            f"objective 'lelp' needs documents that are relevant to more than parts={parts} training texts; there is "
            "none. Lower parts, take more texts.sentences, or set positives: labels."
        )
    rows = np.sort(different[np.isin(documents[different], names)])
    return pseudo_classes(embeddings[rows], np.searchsorted(names, documents[rows]), parts, seed=seed)


def _row_space(weights: np.ndarray | None, width: int) -> np.ndarray:
    """(rank, d) orthonormal rows that span the given rows; (0, d) without weights."""
    if weights is None:
        return np.zeros((0, width))
    if weights.ndim != 2 or weights.shape[1] != width:
        raise UserError(f"weights of shape {weights.shape} for embeddings of width {width}.")
    _, strengths, rows = np.linalg.svd(weights.astype(np.float64), full_matrices=False)
    return rows[strengths > 1e-10 * max(strengths.max(initial=0.0), 1e-30)]
