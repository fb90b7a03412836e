"""Training: from annotated people to a trained ViTPose, or from boxes to a person finder (detection/).

`vitpose-jax train` does the same from the command line.

fit(read_config("configs/finetune.toml", ["epochs=1"]))

The other names are the parts of `fit`, for a loop of your own:

    datasets      PersonSource, make_loader, TrainingBatch
    augmentation  Augmentation, augment_crops, skeleton_arrays
    targets       gaussian_heatmaps
    losses        joints_mse, joints_mse_by_dataset, online_hard_keypoints, heatmap_pck
    optimiser     OptimConfig, make_optimizer, learning_rate, layer_scales, match_rules, ...
    micro-steps   init_state, make_train_step, TrainState
    devices       make_mesh, put_batch
    distillation  make_teacher, with_token
    adapters      LoraConfig, with_adapters, merge_adapters, save_adapters
    detection     BoxSource, make_box_loader, augment_image, assign_cells, detection_losses, make_detection_step, ...
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vitpose_jax.training.augment import Augmentation as Augmentation
    from vitpose_jax.training.augment import augment_crops as augment_crops
    from vitpose_jax.training.augment import skeleton_arrays as skeleton_arrays
    from vitpose_jax.training.checkpoints import Checkpoints as Checkpoints
    from vitpose_jax.training.config import TrainConfig as TrainConfig
    from vitpose_jax.training.config import read_config as read_config
    from vitpose_jax.training.data import Loader as Loader
    from vitpose_jax.training.data import TrainingBatch as TrainingBatch
    from vitpose_jax.training.data import make_loader as make_loader
    from vitpose_jax.training.detection.assignment import assign_cells as assign_cells
    from vitpose_jax.training.detection.augment import ImageAugmentation as ImageAugmentation
    from vitpose_jax.training.detection.augment import augment_image as augment_image
    from vitpose_jax.training.detection.config import DetectionTrainConfig as DetectionTrainConfig
    from vitpose_jax.training.detection.data import BoxBatch as BoxBatch
    from vitpose_jax.training.detection.data import BoxSource as BoxSource
    from vitpose_jax.training.detection.data import make_box_loader as make_box_loader
    from vitpose_jax.training.detection.losses import detection_losses as detection_losses
    from vitpose_jax.training.detection.models import trained_finder as trained_finder
    from vitpose_jax.training.detection.step import make_detection_step as make_detection_step
    from vitpose_jax.training.distill import Teacher as Teacher
    from vitpose_jax.training.distill import make_teacher as make_teacher
    from vitpose_jax.training.distill import with_token as with_token
    from vitpose_jax.training.loop import DivergenceError as DivergenceError
    from vitpose_jax.training.loop import FitResult as FitResult
    from vitpose_jax.training.loop import fit as fit
    from vitpose_jax.training.loop import trained_model as trained_model
    from vitpose_jax.training.lora import LoraConfig as LoraConfig
    from vitpose_jax.training.lora import merge_adapters as merge_adapters
    from vitpose_jax.training.lora import save_adapters as save_adapters
    from vitpose_jax.training.lora import with_adapters as with_adapters
    from vitpose_jax.training.losses import heatmap_pck as heatmap_pck
    from vitpose_jax.training.losses import joints_mse as joints_mse
    from vitpose_jax.training.losses import joints_mse_by_dataset as joints_mse_by_dataset
    from vitpose_jax.training.losses import online_hard_keypoints as online_hard_keypoints
    from vitpose_jax.training.name_rules import match_rules as match_rules
    from vitpose_jax.training.optim import OptimConfig as OptimConfig
    from vitpose_jax.training.optim import batch_stats as batch_stats
    from vitpose_jax.training.optim import layer_scales as layer_scales
    from vitpose_jax.training.optim import learning_rate as learning_rate
    from vitpose_jax.training.optim import make_optimizer as make_optimizer
    from vitpose_jax.training.optim import merge as merge
    from vitpose_jax.training.optim import split as split
    from vitpose_jax.training.optim import training_view as training_view
    from vitpose_jax.training.optim import update_ema as update_ema
    from vitpose_jax.training.people import Person as Person
    from vitpose_jax.training.people import PersonSource as PersonSource
    from vitpose_jax.training.second_stage.config import SecondStageTrainConfig as SecondStageTrainConfig
    from vitpose_jax.training.second_stage.fit import fit_second_stage as fit_second_stage
    from vitpose_jax.training.sharding import make_mesh as make_mesh
    from vitpose_jax.training.sharding import put_batch as put_batch
    from vitpose_jax.training.step import TrainState as TrainState
    from vitpose_jax.training.step import init_state as init_state
    from vitpose_jax.training.step import make_train_step as make_train_step
    from vitpose_jax.training.targets import gaussian_heatmaps as gaussian_heatmaps

# Imported at first use: reading a configuration must not need orbax or grain.
_HOMES = {
    "augment": ("Augmentation", "augment_crops", "skeleton_arrays"),
    "checkpoints": ("Checkpoints",),
    "config": ("TrainConfig", "read_config"),
    "data": ("Loader", "TrainingBatch", "make_loader"),
    "detection.assignment": ("assign_cells",),
    "detection.augment": ("ImageAugmentation", "augment_image"),
    "detection.config": ("DetectionTrainConfig",),
    "detection.data": ("BoxBatch", "BoxSource", "make_box_loader"),
    "detection.losses": ("detection_losses",),
    "detection.models": ("trained_finder",),
    "detection.step": ("make_detection_step",),
    "distill": ("Teacher", "make_teacher", "with_token"),
    "loop": ("DivergenceError", "FitResult", "fit", "trained_model"),
    "lora": ("LoraConfig", "merge_adapters", "save_adapters", "with_adapters"),
    "losses": ("heatmap_pck", "joints_mse", "joints_mse_by_dataset", "online_hard_keypoints"),
    "name_rules": ("match_rules",),
    "optim": (
        "OptimConfig",
        "batch_stats",
        "layer_scales",
        "learning_rate",
        "make_optimizer",
        "merge",
        "split",
        "training_view",
        "update_ema",
    ),
    "people": ("Person", "PersonSource"),
    "second_stage.config": ("SecondStageTrainConfig",),
    "second_stage.fit": ("fit_second_stage",),
    "sharding": ("make_mesh", "put_batch"),
    "step": ("TrainState", "init_state", "make_train_step"),
    "targets": ("gaussian_heatmaps",),
}

__all__ = [name for names in _HOMES.values() for name in names]


def __getattr__(name: str):
    for module, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(f"vitpose_jax.training.{module}"), name)
    raise AttributeError(f"module 'vitpose_jax.training' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
