"""The base class of all settings, and helpers for pydantic fields and validators."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import CoreSchema, core_schema

from retrodistill.core.errors import UserError, unknown


class Settings(BaseModel):
    """Base of all settings: frozen, rejects unknown keys; the string below a field is its documentation."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)


@dataclass(frozen=True)
class OneOf:
    """A name from a closed list: ``Annotated[str, OneOf("sampler", "retrodistill.candidates.samplers:SAMPLERS")]``.

    Validation rejects other names and the JSON schema lists the valid ones. The list is imported on first use, because
    some registries load torch.

    Attributes:
        what: What the name stands for, for the error message.
        home: ``module:attribute`` of the list, or of a mapping with the names as keys.
    """

    what: str
    home: str

    def names(self) -> list[str]:
        """All valid names, in their order."""
        module, _, attribute = self.home.partition(":")
        return list(getattr(importlib.import_module(module), attribute))

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self._checked, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {**handler(schema), "enum": self.names()}

    def _checked(self, name: str) -> str:
        if name not in self.names():
            raise ValueError(str(unknown(self.what, name, self.names())))
        return name


@contextlib.contextmanager
def value_errors() -> Iterator[None]:
    """Inside a validator, turn a `UserError` into the ValueError that pydantic collects."""
    try:
        yield
    except UserError as error:
        raise ValueError(str(error)) from error
