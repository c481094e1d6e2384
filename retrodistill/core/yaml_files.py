"""YAML that others wrote: plain values only, and no more of them than a person would write."""

from __future__ import annotations

from typing import Any

import yaml

from retrodistill.core.errors import UserError

_MOST_CHARACTERS = 1 << 20
_MOST_VALUES = 100_000  # with what aliases repeat
_DEEPEST = 50


def read_yaml(text: str, source: str) -> Any:
    """The value of a YAML document: dictionaries, lists, texts, numbers, dates.

    Raises:
        UserError: `source` is not YAML, names a Python object, or is longer, deeper or, through aliases, larger than
            settings are.
    """
    if len(text) > _MOST_CHARACTERS:
        raise UserError(f"{source} has {len(text):,} characters; YAML of settings has {_MOST_CHARACTERS:,} at most.")
    try:
        node = yaml.compose(text, yaml.SafeLoader)
        _check_size(node, source)
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # the other two of dates and numbers
        raise UserError(f"{source} is not YAML: {' '.join(str(error).split())[:300]}.") from error
    except RecursionError as error:
        raise UserError(f"{source} is nested deeper than {_DEEPEST} levels; write it flatter.") from error


def _check_size(root: yaml.Node | None, source: str) -> None:
    sizes: dict[int, int] = {}  # of nodes that are complete; 0 while one is counted, so that it contains itself

    def count(node: yaml.Node, depth: int) -> int:
        if depth > _DEEPEST:
            raise UserError(f"{source} is nested deeper than {_DEEPEST} levels; write it flatter.")
        if id(node) not in sizes:
            sizes[id(node)] = 0
            children = node.value if isinstance(node, yaml.CollectionNode) else []
            if isinstance(node, yaml.MappingNode):
                _check_keys(node, source)
                children = [each for pair in node.value for each in pair]
            sizes[id(node)] = 1 + sum(count(child, depth + 1) for child in children)
        elif not sizes[id(node)]:
            raise UserError(f"{source} has an alias of what it is in; write the values out.")
        if sizes[id(node)] > _MOST_VALUES:
            raise UserError(
                f"{source} has more than {_MOST_VALUES:,} values, with what its aliases repeat; shorten it."
            )
        return sizes[id(node)]

    if root is not None:
        count(root, 0)


def _check_keys(node: yaml.MappingNode, source: str) -> None:
    """Refuse a key that comes twice: its first value would be lost without a word."""
    seen = set()
    for key, _ in node.value:
        if isinstance(key, yaml.ScalarNode) and (key.tag, key.value) in seen:
            raise UserError(f"{source}, line {key.start_mark.line + 1}: the key {key.value!r} comes twice; keep one.")
        seen.add((key.tag, str(key.value)))
