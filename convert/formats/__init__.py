"""Checkpoint formats, one module each. To add a format, write a module and add its record to a tuple here."""

from .backbones import BARE, DINOV2, MAE
from .finder import FINDER, NANODET
from .huggingface import HUGGINGFACE
from .mmpose import MMPOSE
from .native import ADAPTER, NATIVE
from .original import ORIGINAL
from .rtdetr import RTDETR

# Whole models that `from_pretrained` reads, and the formats that are also written. MMPose's files have the original's
# mark, too.
VITPOSE_FORMATS = (NATIVE, ADAPTER, HUGGINGFACE, MMPOSE, ORIGINAL)
WRITTEN_FORMATS = (NATIVE, HUGGINGFACE)

# Backbones without heads, to start a training from. In this order: MAE's mark is the least specific.
BACKBONE_FORMATS = (DINOV2, BARE, MAE)

# Detectors, for `load_detector`.
DETECTOR_FORMATS = (FINDER, RTDETR, NANODET)
