"""torchvision's classifiers, by their names in torchvision.models."""

from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from typing import Any

import torchvision.models
from torch import nn


class _Classifiers(Mapping[str, Callable[..., nn.Module]]):
    """Maps a name to a function that builds the network; listed lazily."""

    @cached_property
    def known(self) -> list[str]:
        names: list[str] = torchvision.models.list_models(module=torchvision.models)
        return names

    def __getitem__(self, name: str) -> Callable[..., nn.Module]:
        if name not in self.known:
            raise KeyError(name)
        builder = torchvision.models.get_model_builder(name)

        def build(num_classes: int, image_size: int, **arguments: Any) -> nn.Module:
            size = {"image_size": image_size} if name.startswith("vit_") else {}
            model: nn.Module = builder(num_classes=num_classes, **size, **arguments)
            return model

        return build

    def __iter__(self) -> Iterator[str]:
        return iter(self.known)

    def __len__(self) -> int:
        return len(self.known)


CLASSIFIERS = _Classifiers()
