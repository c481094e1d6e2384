"""Several dense encoders as one: their vectors side by side, so that one index serves what all of them know."""

from __future__ import annotations

import functools
import operator
from collections.abc import Sequence
from typing import Any

import numpy as np

from retrodistill.core.errors import UserError
from retrodistill.core.spending import Bill
from retrodistill.data.collection import Collection
from retrodistill.data.texts import Texts
from retrodistill.encoders.contract import Role
from retrodistill.encoders.encoder import Encoder
from retrodistill.encoders.space import space_fingerprint


class ConcatenatedEncoder(Encoder):
    """The unit vectors of several encoders, concatenated, over the root of their number (Stella, arXiv 2412.19048).

    Its cosine is the mean of theirs, so that an index of it ranks by the mean of their cosines. Its name is
    ``concat:KIND:NAME+KIND:NAME``. It encodes with its members: it has no tokenizer and no latency of its own.
    """

    kind = "concat"
    is_static = False
    has_weights = False
    can_truncate = False
    members: Sequence[Encoder]

    def __init__(self, name: str, members: Sequence[Encoder]) -> None:
        """Two members or more; those that do not compare by cosine are a UserError."""
        super().__init__(None, name)
        self.members = list(members)
        if len(self.members) < 2:
            raise UserError(
                f"{name} names {len(self.members)} encoder; write concat:dense:A+dense:B, or name it alone."
            )
        for member in self.members:
            if member.similarity != "cosine":
                raise UserError(
                    f"{name}: {member.name} compares by {member.similarity}, and only vectors that compare by cosine "
                    "are concatenated; leave it out."
                )
        if len({member.document_space for member in self.members}) < len(self.members):
            raise UserError(f"{name} names an encoder twice, which changes no ranking; name it once.")
        self.is_recorded = any(member.is_recorded for member in self.members)

    @property
    def dimension(self) -> int:
        """The sum of the members' widths."""
        return sum(self.widths)

    @property
    def widths(self) -> tuple[int, ...]:
        """The members' dimensions, in order."""
        return tuple(member.dimension for member in self.members)

    @property
    def similarity(self) -> str:
        """``cosine``."""
        return "cosine"

    @property
    def truncation(self) -> int | None:
        """None: leading dimensions are those of the first member."""
        return None

    @property
    def is_symmetric(self) -> bool:
        """Whether all members give a text one vector in both roles."""
        return all(member.is_symmetric for member in self.members)

    def prompt(self, role: Role) -> str:
        """Empty: each member adds its own."""
        return ""

    def contract(self, role: Role) -> dict[str, Any]:
        """The members' contracts, in order."""
        members = [member.contract(role) for member in self.members]
        return {"members": members, "similarity": "cosine", "dimension": self.dimension}

    def fingerprint(self, role: Role) -> str:
        """As `TextModel.fingerprint`, with what each member's own adds, such as its precision."""
        return space_fingerprint(self.contract(role), *(member.fingerprint(role) for member in self.members))

    def needs_store(self, role: Role) -> bool:
        """Whether some member does."""
        return any(member.needs_store(role) for member in self.members)

    def bind(self, collection: Collection) -> ConcatenatedEncoder:
        """Bind each member."""
        bound = ConcatenatedEncoder(self.name, [member.bind(collection) for member in self.members])
        bound.loaded_from = self.loaded_from
        return bound

    def missing(self, texts: Sequence[str], role: Role) -> np.ndarray:
        """(m,) int64 positions of texts that some member cannot encode."""
        return np.unique(np.concatenate([member.missing(texts, role) for member in self.members]))

    def require(self, texts: Texts, role: Role) -> None:
        """Check that every member can encode texts."""
        for member in self.members:
            member.require(texts, role)

    def encode(self, texts: Sequence[str], role: Role, *, batch_size: int | None = None) -> np.ndarray:
        """(n, dimension) float32 unit vectors."""
        return self.joined([member.encode(texts, role, batch_size=batch_size) for member in self.members])

    def joined(self, vectors: Sequence[np.ndarray]) -> np.ndarray:
        """(n, dimension) float32 vectors, from those of each member."""
        return np.concatenate(vectors, axis=1) / np.float32(np.sqrt(len(self.members)))

    def bill(self, texts: Sequence[str], role: Role) -> Bill:
        """What the members' requests take."""
        return functools.reduce(operator.add, (member.bill(texts, role) for member in self.members))
