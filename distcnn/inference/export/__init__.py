"""Export a trained model with its preprocessing, and verify the result: one file per format."""

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
