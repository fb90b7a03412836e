"""Conversion between PyTorch checkpoints of ViTPose and Flax models."""

from .conversion import convert, write

__all__ = ["convert", "write"]
