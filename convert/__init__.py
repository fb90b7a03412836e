"""Conversion between checkpoint formats and Flax models, both ways, bit for bit.

formats/       what is known about each checkpoint format, one module each
engine         moves tensors by the rules of a format
transforms     the array layouts of PyTorch and Flax
torch_files    reads .safetensors, and .pth and .bin with torch
hub            finds a path, or fetches a model from the Hub
sources        opens and checks a checkpoint, and builds the model
api            `convert` and `write`; detectors and backbones have modules of their own
"""

from .api import check_writable, convert, write

__all__ = ["check_writable", "convert", "write"]
