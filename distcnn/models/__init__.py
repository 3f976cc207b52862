"""Network registry: built-in networks, torchvision classifiers, or your own `package.module:callable`."""

from distcnn.registry import Registry

# (num_classes, *, arguments) -> nn.Module, from [N, 3, S, S] to [N, num_classes] logits; `image_size` is S.
MODELS = Registry(
    "models",
    {
        "simple_cnn": "distcnn.models.simple:SimpleCNN",
        "compact_cnn": "distcnn.models.compact:CompactCNN",
        "resnet9": "distcnn.models.resnet:ResNet9",
        "resnet18": "distcnn.models.resnet:resnet18",
        "whitened_cnn": "distcnn.models.whitened:WhitenedCNN",
    },
    given=("num_classes", "image_size"),
    more="distcnn.models.classifiers:CLASSIFIERS",
    hint="a torchvision classifier such as mobilenet_v3_small, or your own package.module:callable",
)
