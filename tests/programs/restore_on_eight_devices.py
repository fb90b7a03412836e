"""A checkpoint of one mesh of eight forced host devices, restored into others; prints differences and parts as JSON.

Argument: the folder of the checkpoints. The next step of each restored state is compared with that of the saved one.
"""

import json
import sys

import jax
import numpy as np

from tests.support.models import random_model
from tests.support.training_step import random_batch
from vitpose_jax import VitPoseConfig
from vitpose_jax.training.augment import Augmentation
from vitpose_jax.training.checkpoints import Checkpoints
from vitpose_jax.training.optim import OptimConfig
from vitpose_jax.training.sharding import make_mesh, put_batch, to_host
from vitpose_jax.training.step import init_state, make_train_step

assert len(jax.devices()) == 8
config = VitPoseConfig(image_size=(32, 32), hidden_size=24, num_layers=2, num_heads=2, mlp_ratio=2)
settings = OptimConfig(total_steps=9, warmup_steps=0, drop_path=0.2, ema_decay=0.5, eps=1e-6)


def begin(mesh, seed):
    graphdef, optimizer, state = init_state(random_model(config, seed=seed), settings, mesh)
    return state, make_train_step(
        config, graphdef, optimizer, optim_config=settings, augmentation=Augmentation(), mesh=mesh
    )


def advance(mesh, step, state, number):
    batch = random_batch(config, ["coco"] * 8, seed=number)
    return step(state, batch if mesh is None else put_batch(batch, mesh), jax.random.key(0))


def on_host(state):
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in jax.tree.leaves_with_path(to_host(state))}


first = make_mesh(2, 4)
state, step = begin(first, seed=0)
state, _ = advance(first, step, state, 0)
saved = on_host(state)
results = {}
with Checkpoints(sys.argv[1]) as checkpoints:
    checkpoints.save(state, {"micro_step": 1}, {"best": None})
    checkpoints.wait()
    state, metrics = advance(first, step, state, 1)
    expected = float(metrics["loss"])
    for name, shape in {"same": (2, 4), "data": (8, 1), "fsdp": (1, 8), "one": None}.items():
        mesh = None if shape is None else make_mesh(*shape)
        # Other weights: all of them are replaced.
        like, step = begin(mesh, seed=1)
        restored, loader, note = checkpoints.restore(like)
        found = on_host(restored)
        kernel = restored.trained["backbone.blocks.mlp.fc1.kernel"]
        part = list(kernel.addressable_shards[0].data.shape)
        _, metrics = advance(mesh, step, restored, 1)
        results[name] = {
            "equal": found.keys() == saved.keys() and all(np.array_equal(found[key], saved[key]) for key in saved),
            "part": part,
            "loss": float(metrics["loss"]),
            "expected": expected,
        }
print(json.dumps(results))
