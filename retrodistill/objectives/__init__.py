"""Objectives: pure functions of masked (batch, n) float32 lists, embeddings, tokens or term weights, by module."""

import importlib
import pkgutil

for _module in pkgutil.iter_modules(__path__):  # every module registers its objectives when it is imported
    importlib.import_module(f"{__name__}.{_module.name}")
