"""Objectives: pure functions of masked (batch, n) float32 lists, embeddings, tokens or term weights, by module."""

import importlib
import pkgutil

from retrodistill.objectives.classes import PseudoClasses, classes_of
from retrodistill.objectives.distributions import InterpolationSchedule
from retrodistill.objectives.lists import usable_lists
from retrodistill.objectives.sparsity import whole_batch

for _module in pkgutil.iter_modules(__path__):  # every module registers its objectives when it is imported
    importlib.import_module(f"{__name__}.{_module.name}")

__all__ = ["InterpolationSchedule", "PseudoClasses", "classes_of", "usable_lists", "whole_batch"]
