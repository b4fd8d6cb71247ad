"""Export: a checkpoint as another runtime's file or folder, run by that runtime and checked before it is called done.

    found = export("runs/demo/checkpoints/fp32", "onnx", "runs/onnx", data="digits")
    found["agreement"], found["accuracy"]["top1"]     # of onnxruntime, on the test images

One file a target in this room: `onnx_file`, `openvino_file`, `pt2_file`, `timm_folder`, `transformers_folder`, each with
a function that writes and one that runs what was written. `targets` lists them.
"""

from petalite.export.run import export
from petalite.export.targets import INPUTS, TARGETS

__all__ = ["INPUTS", "TARGETS", "export"]
