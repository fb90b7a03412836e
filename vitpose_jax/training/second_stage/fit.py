"""`fit_second_stage`: gives a finder its second stage, with the backbone of a pose model. `task = "second_stage"`.

    collect     each image: the finder's boxes, and boxes near the annotated ones; the tokens of their crops behind the
                first blocks of the backbone, which are not trained, in float16 in memory
    fit         the last blocks and the head, on these tokens: is it a person's box, and how should it move
    calibrate   on images that were held out: how much each stage counts
    write       the finder with its second stage, as a native folder

It is not resumed: it begins anew.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from vitpose_jax.convert.detectors import write_finder
from vitpose_jax.finder.config import SecondStageConfig
from vitpose_jax.finder.modeling import abstract_finder
from vitpose_jax.finder.second_stage import backbone_config
from vitpose_jax.pretrained import from_pretrained
from vitpose_jax.storage import parameters
from vitpose_jax.storage.tensors import CONFIG_FILE, WEIGHTS_FILE
from vitpose_jax.training.detection.data import BoxSource
from vitpose_jax.training.detection.models import load_finder
from vitpose_jax.training.optim import arrays_by_name
from vitpose_jax.training.second_stage.config import SecondStageTrainConfig
from vitpose_jax.training.second_stage.examples import collect
from vitpose_jax.training.second_stage.judge import calibrate, fit_judge, split
from vitpose_jax.vitpose.modeling import Backbone


def fit_second_stage(settings: SecondStageTrainConfig, report: Callable[[str], None] = print) -> Path:
    """Train a second stage and write the finder with it.

    Args:
        settings: all of them.
        report: gets a line now and then.

    Returns:
        The folder.

    Raises:
        ValueError: for an `init` that is not a person finder, a `backbone` or data that cannot be read, too few
            examples, or an `output` that holds a model already.
    """
    output = Path(settings.output)
    if output.exists() and (
        not output.is_dir() or any((output / name).exists() for name in (CONFIG_FILE, WEIGHTS_FILE))
    ):
        raise ValueError(f"output: expected a folder without a model, got {settings.output}")
    finder = load_finder(settings.init)
    backbone, stage = _load_backbone(settings)
    sources = [BoxSource(data.annotations, data.images, category_id=data.category_id) for data in settings.data]
    first, judge = split(backbone, stage, settings)
    examples = collect(finder, first, stage, sources, settings, report)
    judge = fit_judge(judge, examples, settings, report)
    stage = calibrate(stage, judge, examples)
    report(
        f"with a second stage {stage.first_weight:.3f} x first {stage.second_weight:+.3f} x second {stage.bias:+.3f}"
    )
    report(f"without {stage.rest_weight:.3f} x first {stage.rest_bias:+.3f}")
    config = finder.config.replace(second_stage=stage)
    tensors: dict[str, Any] = dict(arrays_by_name(finder))
    trained = arrays_by_name(judge)
    for name, leaf in arrays_by_name(backbone).items():
        last = trained.get(name, leaf[:0])  # of the blocks, the last ones are trained; the norm is trained as a whole
        whole = np.concatenate([leaf[: len(leaf) - len(last)], last])
        tensors[f"second_stage.backbone.{name}"] = whole
    tensors |= {f"second_stage.{name}": leaf for name, leaf in trained.items() if name.startswith("head.")}
    model = parameters.fill(abstract_finder(config), tensors, source="the finder and its second stage")
    return write_finder(model, settings.output, int8=settings.int8)


def _load_backbone(settings: SecondStageTrainConfig) -> tuple[Backbone, SecondStageConfig]:
    """The backbone of the pose model for crops of our size, and the configuration with its sizes."""
    dtype = jnp.dtype(settings.precision)
    model = from_pretrained(
        settings.backbone, image_size=settings.model.crop_size, dtype=dtype, param_dtype=jnp.float32
    )
    config = model.config
    stage = dataclasses.replace(
        settings.model,
        hidden_size=config.hidden_size,
        num_layers=config.num_layers,
        num_heads=config.num_heads,
        layer_norm_eps=config.layer_norm_eps,
        image_mean=config.image_mean,
        image_std=config.image_std,
    )
    backbone = model.specialize().backbone if config.experts else model.backbone
    expected, actual = backbone_config(stage), backbone.config
    for name in ("patch_size", "mlp_ratio", "hidden_act", "qkv_bias", "window_size", "out_indices", "knowledge_token"):
        if getattr(expected, name) != getattr(actual, name):
            raise ValueError(
                f"backbone: expected {name} {getattr(expected, name)}, got {getattr(actual, name)} "
                f"in {settings.backbone}"
            )
    return backbone, stage
