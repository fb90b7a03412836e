"""Three steps of training on each mesh of eight forced host devices; losses, parts, sums, and how often a step
exchanges parts of activations, as JSON.

Arguments: the meshes as JSON {name: [data, fsdp], or null for one device}, and "plain" or "taught" (by a teacher).
"""

import dataclasses
import json
import re
import sys

import jax
import numpy as np

from tests.support.models import random_model
from tests.support.training_step import random_batch
from vitpose_jax import VitPoseConfig
from vitpose_jax.training.augment import Augmentation
from vitpose_jax.training.distill import make_teacher
from vitpose_jax.training.optim import OptimConfig
from vitpose_jax.training.sharding import make_mesh, put_batch, to_host
from vitpose_jax.training.step import init_state, make_train_step

meshes, kind = json.loads(sys.argv[1]), sys.argv[2]
assert len(jax.devices()) == 8
config = VitPoseConfig(image_size=(32, 32), hidden_size=24, num_layers=2, num_heads=2, mlp_ratio=2)
settings = OptimConfig(total_steps=9, warmup_steps=0, drop_path=0.2, ema_decay=0.5, eps=1e-6)
larger = teacher = None
if kind == "taught":
    larger = random_model(config.replace(hidden_size=32, num_layers=1), seed=1)
    config = config.replace(knowledge_token=32)
    settings = dataclasses.replace(settings, frozen=("knowledge_token",))
results = {}
for name, shape in meshes.items():
    mesh = None if shape is None else make_mesh(*shape)
    if larger is not None:
        teacher = make_teacher(larger, config, weight=2.0, mesh=mesh)
    graphdef, optimizer, state = init_state(random_model(config), settings, mesh)
    options = {"optim_config": settings, "augmentation": Augmentation(), "mesh": mesh, "teacher": teacher}
    step = make_train_step(config, graphdef, optimizer, **options)
    losses = []
    for number in range(3):
        batch = random_batch(config, ["coco"] * 8, seed=number)
        state, metrics = step(state, batch if mesh is None else put_batch(batch, mesh), jax.random.key(0))
        losses.append([float(metrics["loss"]), float(metrics["gradient_norm"])])
    kernel = state.trained["backbone.blocks.mlp.fc1.kernel"]
    moment = next(leaf for leaf in jax.tree.leaves(state.opt_state) if leaf.shape == kernel.shape)
    leaves = [kernel, moment, state.ema["backbone.norm.scale"]]
    if teacher is not None:
        leaves.append(teacher.tensors["backbone.blocks.mlp.fc1.kernel"])
    parts = [list(leaf.addressable_shards[0].data.shape) for leaf in leaves]
    sums = {key: float(np.sum(np.abs(leaf))) for key, leaf in to_host(state.ema | state.rest).items()}
    results[name] = {"losses": losses, "parts": parts, "sums": sums}
    if mesh is not None:
        text = jax.jit(step).lower(state, put_batch(batch, mesh), jax.random.key(0)).compile().as_text()
        results[name]["exchanges"] = len(re.findall(r" (?:all-to-all|collective-permute)(?:-start)?\(", text))
print(json.dumps(results))
