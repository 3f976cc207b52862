"""YAML read without surprises: what is given twice is told, and no short file costs hours or gigabytes."""

from collections.abc import Iterator
from typing import Any

import yaml

_DEEPEST = 20


class _Loader(yaml.SafeLoader):
    """Refuses, before they are read, what makes a short file cost hours or gigabytes."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):  # nine of nine of nine … would make billions of values
            raise ValueError("YAML's aliases (*name) are not taken; write the value out")
        deeper = self.check_event(yaml.CollectionStartEvent)
        if self.depth + deeper > _DEEPEST:  # PyYAML's time grows with the square of it
            raise ValueError(f"nested more than {_DEEPEST} levels deep; a config has two or three")
        self.depth += deeper
        node = super().compose_node(parent, index)
        self.depth -= deeper
        return node


def compose(data: bytes) -> yaml.MappingNode | None:
    """The mapping that a YAML file holds, None where it is empty. Raises ValueError with what is wrong with it."""
    try:
        root = yaml.compose(data.decode("utf-8"), Loader=_Loader)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"not readable as YAML: {' '.join(str(error).split())}") from None
    if root is not None and not isinstance(root, yaml.MappingNode):
        raise ValueError("should hold sections such as `train:` and `data:`, not a list or a single value")
    return root


def construct(node: yaml.Node) -> Any:
    """The plain value of a part of a YAML file. Raises ValueError where it does not fit its tag."""
    try:
        return yaml.SafeLoader("").construct_document(node)
    except Exception as error:  # for an empty !!int or a !!bool that is none, whatever PyYAML stumbles over
        text = str(error) if isinstance(error, yaml.YAMLError | ValueError) else "a value does not fit its tag"
        raise ValueError(" ".join(text.split())) from None


def given_twice(node: yaml.Node) -> Iterator[tuple[int, str]]:
    """(line, key) of the repeated keys of mappings inside a value."""
    if isinstance(node, yaml.MappingNode):
        seen = set[str]()
        for key_node, value_node in node.value:
            if str(key_node.value) in seen:
                yield key_node.start_mark.line + 1, str(key_node.value)
            seen.add(str(key_node.value))
            yield from given_twice(value_node)
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            yield from given_twice(item)
