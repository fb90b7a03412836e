"""The sample files of each dataset that mmpose's tests come with."""

import pathlib
from typing import Any

from vitpose_jax.evaluation import read_dataset

# File, folder of images, images with people, people, keypoints.
SAMPLES = {
    "coco": ("coco/test_coco.json", "coco", 4, 12, 17),
    "wholebody": ("coco/test_coco_wholebody.json", "coco", 4, 12, 133),
    "aic": ("aic/test_aic.json", "aic", 3, 9, 14),
    "ap10k": ("ap10k/test_ap10k.json", "ap10k", 2, 2, 17),
    "apt36k": ("ap10k/test_ap10k.json", "ap10k", 2, 2, 17),
    "ochuman": ("ochuman/test_ochuman.json", "ochuman", 3, 5, 17),
    "crowdpose": ("crowdpose/test_crowdpose.json", "crowdpose", 2, 4, 14),
    "mpii": ("mpii/test_mpii.json", "mpii", 5, 5, 16),
}


def read_sample(data: pathlib.Path, name: str, **options: Any):
    file, folder, *_ = SAMPLES[name]
    return read_dataset(name, data / "mmpose_samples" / file, data / "mmpose_samples" / folder, **options)
