"""Data sources, one file each. Imports no torch."""

from distcnn.registry import Registry

# (config: DataConfig, split: "train" or "test", *, arguments) -> ImageSet
SOURCES = Registry(
    "sources",
    {
        "cifar10": "distcnn.data.sources.cifar:cifar10",
        "cifar100": "distcnn.data.sources.cifar:cifar100",
        "folder": "distcnn.data.sources.folder:folder",
        "digits": "distcnn.data.sources.digits:digits",
        "synthetic": "distcnn.data.sources.synthetic:synthetic",
    },
    given=("config", "split"),
)
