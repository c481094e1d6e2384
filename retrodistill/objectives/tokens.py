"""Objectives over the teacher's and student's token embeddings of one text."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import normalize

from retrodistill.core.errors import UserError
from retrodistill.objectives.masks import at_least_float32, full_mask
from retrodistill.objectives.registry import objective


@objective(
    "token-relations",
    "cosines between a text's tokens, as a multi-vector teacher has them (TRG, arXiv 2306.12442)",
    ("student_tokens", "teacher_tokens", "token_mask"),
    sees="tokens",
)
def token_relations(
    student: Tensor, teacher: Tensor, mask: Tensor | None = None, *, across_texts: bool = False
) -> Tensor:
    """TRG: match the similarity matrices of tokens, the student's against the teacher's (arXiv 2306.12442).

    ``mean over pairs i < j of (cos(s_i, s_j) - cos(t_i, t_j))^2`` over the real tokens of each text, or of the batch.
    Widths may differ, but tokens may not: both sides must use the same tokenizer. The token graph within and across
    texts is the paper's. The squared difference replaces the paper's softmax over sampled tokens. The paper's
    contextual loss is not implemented.

    Args:
        student: (batch, tokens, d) student token embeddings.
        teacher: (batch, tokens, e) teacher token embeddings of the same tokens.
        mask: (batch, tokens) bool, true where there is a token. Masked positions may hold any value, NaN included.
        across_texts: Use pairs over the whole batch, which takes (batch x tokens)^2 similarities.

    Returns:
        Scalar float32 from 0 to 4: the mean over all pairs of the batch; 0 where no text has two tokens.

    Raises:
        UserError: The texts or tokens differ.
    """
    if student.ndim != 3 or teacher.ndim != 3 or student.shape[:2] != teacher.shape[:2]:
        raise UserError(
            f"student tokens of shape {tuple(student.shape)}, teacher's {tuple(teacher.shape)}; both are (batch, "
            "tokens, dimensions) of the same tokens, so both models need one tokenizer and one maximum length."
        )
    valid = full_mask(student[:, :, 0], mask)
    if across_texts:
        student, teacher, valid = (one.flatten(0, 1)[None] for one in (student, teacher, valid))
    cleaned = (at_least_float32(side).masked_fill(~valid[:, :, None], 0.0) for side in (student, teacher))
    ours, theirs = ((unit @ unit.mT) for unit in (normalize(side, dim=2) for side in cleaned))
    pairs = (valid[:, :, None] & valid[:, None, :]).triu(diagonal=1)
    return ((ours - theirs) ** 2).masked_fill(~pairs, 0.0).sum() / pairs.sum().clamp(min=1)
