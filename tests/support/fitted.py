"""Tiny ViTPoses of transformers, fitted for some seconds so that their heatmaps have real peaks.

The heatmaps of random weights are noise, and where noise is highest says little. These models learn a few
pictures by heart: drawn ones, with a coloured disc on every joint, or photographs with labels.
"""

import dataclasses
import json
import pathlib

import numpy as np
import torch
import transformers
from PIL import Image, ImageDraw
from transformers import VitPoseImageProcessorPil
from transformers.models.vitpose.image_processing_pil_vitpose import box_to_center_and_scale

from tests.support.reference_torch import randomize, tiny_model
from vitpose_jax.datasets.archives import ImageStore
from vitpose_jax.skeletons import COCO

IMAGE_SIZE = (128, 96)
PEAK_WIDTH = 2.0
PROCESSOR = VitPoseImageProcessorPil(size={"height": IMAGE_SIZE[0], "width": IMAGE_SIZE[1]})
_BACKBONE = {"image_size": list(IMAGE_SIZE), "hidden_size": 48, "num_attention_heads": 3, "mlp_ratio": 2}

# Where the joints of a figure stand: (x from the middle, y from the top), in heights of the figure.
_JOINTS = {
    "nose": (0.0, 0.10),
    "eye": (0.05, 0.04),
    "ear": (0.11, 0.09),
    "shoulder": (0.13, 0.22),
    "elbow": (0.20, 0.36),
    "wrist": (0.22, 0.50),
    "hip": (0.09, 0.52),
    "knee": (0.11, 0.72),
    "ankle": (0.13, 0.93),
}
_COLOURS = {
    "nose": "black",
    "eye": "magenta",
    "ear": "cyan",
    "shoulder": "yellow",
    "elbow": "blue",
    "wrist": "red",
    "hip": "lime",
    "knee": "white",
    "ankle": "maroon",
}


@dataclasses.dataclass(frozen=True, eq=False)
class Picture:
    """An image and the people in it: boxes (n, 4) x y w h, keypoints (n, 17, 2), and which are labelled (n, 17)."""

    image: np.ndarray
    boxes: np.ndarray
    keypoints: np.ndarray
    labelled: np.ndarray


def draw_people(seed: int, count: int, size: tuple[int, int] = (240, 400)) -> Picture:
    """Figures side by side before a smooth background: a disc on each joint, of one colour left and right."""
    rng = np.random.default_rng(seed)
    height, width = size
    background = Image.fromarray(rng.integers(90, 170, (4, 6, 3), np.uint8))
    image = background.resize((width, height), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(image)
    boxes, keypoints = [], []
    for place in range(count):
        tall = rng.uniform(0.55, 0.8) * height
        middle, top = (place + 0.5) * width / count + rng.uniform(-8, 8), rng.uniform(0.05, 0.15) * height
        boxes.append([middle - 0.26 * tall, top, 0.52 * tall, tall])
        keypoints.append([])
        for name in COCO.keypoints:
            side, _, joint = name.rpartition("_")
            x, y = _JOINTS[joint] + rng.uniform(-0.025, 0.025, 2)
            x = middle + {"left": x, "right": -x, "": x}[side] * tall
            y = top + y * tall
            draw.circle((x, y), 0.028 * tall, fill=_COLOURS[joint])
            keypoints[-1].append([x, y])
    labelled = np.ones((count, COCO.num_keypoints), bool)
    return Picture(np.asarray(image), np.array(boxes, np.float32), np.array(keypoints, np.float32), labelled)


def training_photographs(data: pathlib.Path, count: int) -> list[Picture]:
    """People of the training part of the sample data, one to a photograph, nearly all of their joints labelled."""
    annotations = json.loads((data / "train" / "person_keypoints.json").read_text())
    names = {image["id"]: image["file_name"] for image in annotations["images"]}
    pictures = []
    store = ImageStore(data / "train" / "*.zip")
    for person in annotations["annotations"]:
        name = names[person["image_id"]]
        if name.startswith("coco_") and person["num_keypoints"] >= 16 and len(pictures) < count:
            keypoints = np.array(person["keypoints"], np.float32).reshape(1, -1, 3)
            box = np.array([person["bbox"]], np.float32)
            image = store.load(data / "train" / name)
            pictures.append(Picture(image, box, keypoints[..., :2], keypoints[..., 2] > 0))
    return pictures


def crop(pictures: list[Picture]) -> torch.Tensor:
    """Everyone in the pictures, cropped by the processor of transformers: (n, 3, height, width)."""
    images, boxes = [Image.fromarray(p.image) for p in pictures], [p.boxes.tolist() for p in pictures]
    return PROCESSOR(images, boxes=boxes, return_tensors="pt")["pixel_values"].float()


def fit(
    pictures: list[Picture], *, steps: int = 300, patch_size: int = 8, **options
) -> transformers.VitPoseForPoseEstimation:
    """A model that has learnt the pictures, and their mirror images, by heart."""
    crops = crop(pictures)
    heatmap_size = tuple(side // patch_size * 4 for side in IMAGE_SIZE)
    targets = torch.cat([_targets(picture, heatmap_size) for picture in pictures])
    labelled = torch.from_numpy(np.concatenate([picture.labelled for picture in pictures]))
    mirror = list(COCO.flip_indices)
    crops = torch.cat([crops, crops.flip(-1)])
    targets = torch.cat([targets, targets.flip(-1)[:, mirror]])
    labelled = torch.cat([labelled, labelled[:, mirror]])[..., None, None]

    model = tiny_model(**_BACKBONE, patch_size=[patch_size, patch_size], **options)
    with torch.no_grad():
        model.head.conv.weight *= 0.1
        model.head.conv.bias.zero_()
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.01, total_steps=steps)
    # With one thread the time does not depend on what else the machine does.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    model.train()
    for _ in range(steps):
        batch = torch.randperm(len(crops), generator=generator)[:8]
        loss = 1000 * ((model(crops[batch]).heatmaps - targets[batch]) ** 2 * labelled[batch]).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    torch.set_num_threads(threads)
    return model.eval()


def with_experts(plain: transformers.VitPoseForPoseEstimation) -> transformers.VitPoseForPoseEstimation:
    """A ViTPose++ of three experts: the first is cut off the plain model's second layers, the others are random."""
    patch_size = plain.config.backbone_config.patch_size
    model = tiny_model(**_BACKBONE, patch_size=patch_size, num_experts=3, part_features=12)
    state = randomize(model, seed=1).state_dict()
    for name, tensor in plain.state_dict().items():
        if ".mlp.fc2." in name:
            state[name], state[name.replace("fc2", "experts.0")] = tensor[:-12], tensor[-12:]
        else:
            state[name] = tensor
    model.load_state_dict(state)
    return model


def _targets(picture: Picture, size: tuple[int, int]) -> torch.Tensor:
    """Gaussians where the keypoints are: (n, 17, height, width)."""
    rows, columns = np.mgrid[: size[0], : size[1]]
    targets = []
    for box, keypoints in zip(picture.boxes, picture.keypoints, strict=True):
        center, scale = box_to_center_and_scale(box, IMAGE_SIZE[1], IMAGE_SIZE[0], normalize_factor=1)
        points = (keypoints - center + scale / 2) / scale * (np.array(size[::-1]) - 1)
        x, y = points.T[..., None, None]
        targets.append(np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / (2 * PEAK_WIDTH**2)))
    return torch.tensor(np.array(targets), dtype=torch.float32)
