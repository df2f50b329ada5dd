"""YAML in which a key that is given twice is an error; plain YAML lets the last one win."""

from typing import Any

import yaml


class _Loader(yaml.SafeLoader):
    """Safe, and strict about keys."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Refuse a mapping with one key twice."""
        seen: set[tuple[str, str]] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag == "tag:yaml.org,2002:merge":
                continue
            if (key.tag, key.value) in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key.value!r} is given twice: keep one", key.start_mark
                )
            seen.add((key.tag, key.value))
        return super().construct_mapping(node, deep)


def load_yaml(text: str) -> Any:
    """Return what a YAML text says, as plain data.

    Raises:
        yaml.YAMLError: it is no YAML, or a mapping has a key twice.
        ValueError: a date in it is none.
        RecursionError: it is nested without end.
    """
    return yaml.load(text, _Loader)  # noqa: S506 (a safe loader)
