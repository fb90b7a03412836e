"""ViTPose and RT-DETR under the names of Hugging Face transformers: change the import line, keep the rest.

    from vitpose_jax.interop.transformers import AutoProcessor, RTDetrForObjectDetection, VitPoseForPoseEstimation

The classes are thin: they take and return what those of transformers do, and call this library. Arrays come back as
the kind that goes in: NumPy, JAX or, if you use it, PyTorch. docs/guides/from-transformers.md compares the two.
"""

from vitpose_jax.interop.transformers.arrays import BatchFeature as BatchFeature
from vitpose_jax.interop.transformers.arrays import ModelOutput as ModelOutput
from vitpose_jax.interop.transformers.auto import AutoImageProcessor as AutoImageProcessor
from vitpose_jax.interop.transformers.auto import AutoModelForObjectDetection as AutoModelForObjectDetection
from vitpose_jax.interop.transformers.auto import AutoModelForPoseEstimation as AutoModelForPoseEstimation
from vitpose_jax.interop.transformers.auto import AutoProcessor as AutoProcessor
from vitpose_jax.interop.transformers.configuration import RTDetrConfig as RTDetrConfig
from vitpose_jax.interop.transformers.configuration import TorchAoConfig as TorchAoConfig
from vitpose_jax.interop.transformers.configuration import VitPoseBackboneConfig as VitPoseBackboneConfig
from vitpose_jax.interop.transformers.configuration import VitPoseConfig as VitPoseConfig
from vitpose_jax.interop.transformers.detection import RTDetrForObjectDetection as RTDetrForObjectDetection
from vitpose_jax.interop.transformers.detection import RTDetrImageProcessor as RTDetrImageProcessor
from vitpose_jax.interop.transformers.detection import RTDetrObjectDetectionOutput as RTDetrObjectDetectionOutput
from vitpose_jax.interop.transformers.detection import RTDetrV2ForObjectDetection as RTDetrV2ForObjectDetection
from vitpose_jax.interop.transformers.devices import infer_device as infer_device
from vitpose_jax.interop.transformers.image_processing import VitPoseImageProcessor as VitPoseImageProcessor
from vitpose_jax.interop.transformers.modeling import VitPoseEstimatorOutput as VitPoseEstimatorOutput
from vitpose_jax.interop.transformers.modeling import VitPoseForPoseEstimation as VitPoseForPoseEstimation
