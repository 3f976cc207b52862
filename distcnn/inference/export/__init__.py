"""A trained model for other programs, its preprocessing inside, and verified: one file per format."""

from distcnn.registry import Registry

FORMATS = Registry(
    "export_formats",
    {
        "onnx": "distcnn.inference.export.onnx:Onnx",
        "torch-export": "distcnn.inference.export.torch_export:TorchExport",
        "torchscript": "distcnn.inference.export.torchscript:TorchScript",
        "safetensors": "distcnn.inference.export.safetensors:Safetensors",
    },
    hint="your own package.module:Format",
)
