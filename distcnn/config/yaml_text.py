"""Safe YAML: repeated keys are reported, and no short file can cost hours or gigabytes."""

from collections.abc import Iterator
from typing import Any

import yaml

_DEEPEST = 20


class _Loader(yaml.SafeLoader):
    """Refuses aliases and deep nesting before they are expanded."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):  # nested aliases expand exponentially
            raise ValueError("YAML aliases (*name) are not supported; write the value out")
        deeper = self.check_event(yaml.CollectionStartEvent)
        if self.depth + deeper > _DEEPEST:  # PyYAML's time grows with the square of the depth
            raise ValueError(f"nested more than {_DEEPEST} levels deep; a config has two or three")
        self.depth += deeper
        node = super().compose_node(parent, index)
        self.depth -= deeper
        return node


def compose(data: bytes) -> yaml.MappingNode | None:
    """Parse a YAML file to its top-level mapping; None if it is empty. Raises ValueError with the reason."""
    try:
        root = yaml.compose(data.decode("utf-8"), Loader=_Loader)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"not readable as YAML: {' '.join(str(error).split())}") from None
    if root is not None and not isinstance(root, yaml.MappingNode):
        raise ValueError("should hold sections such as `train:` and `data:`, not a list or a single value")
    return root


def construct(node: yaml.Node) -> Any:
    """Convert a node to its plain value. Raises ValueError if it does not fit its tag."""
    try:
        return yaml.SafeLoader("").construct_document(node)
    except Exception as error:  # an empty !!int or an invalid !!bool makes PyYAML raise anything
        text = str(error) if isinstance(error, yaml.YAMLError | ValueError) else "a value does not fit its tag"
        raise ValueError(" ".join(text.split())) from None


def given_twice(node: yaml.Node) -> Iterator[tuple[int, str]]:
    """Yield (line, key) of repeated keys in the mappings inside a value."""
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
