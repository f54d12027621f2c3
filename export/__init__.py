"""From a trained run (or a foreign ONNX file) to verified variants in a Triton model repository."""
