"""From an image to its people: RT-DETR, then ViTPose, beside the same chain of transformers, in one run.

    python benchmarks/detection.py                                        # the defaults below
    python benchmarks/detection.py --detectors r18vd r50vd --people 1 8 --dtypes bfloat16 --output gpu_detection
    python benchmarks/detection.py --detectors tiny --presets tiny --rounds 1    # shows that it runs

Calls are warm and interleaved; the table shows medians, the range without the fastest and the slowest tenth, and the
first call, which compiles. All programs get the same random weights. The scores of a random detector mean nothing, so
`people` boxes are taken from it whatever their scores: all programs do the same work. Stages:

    detect    image to boxes: resizing, network, decoding of its output
    chain     image to keypoints: detect, crop, pose network, decoding; ours as two programs and as one
"""

import argparse
import tempfile
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from common import OURS, TINY, arguments, report, timed_rows, vitpose_config
from flax import nnx
from peers import Peer, functions, load
from speed import scene
from speed_tables import detection_table

from vitpose_jax import Detector, PoseEstimator, SingleProgramEstimator, VitPose, convert
from vitpose_jax.convert.detectors import write_detector
from vitpose_jax.rtdetr.config import DetectorConfig
from vitpose_jax.rtdetr.modeling import RtDetr

DETECTORS = ["r50vd"]
PRESETS = ["base-simple"]
PEOPLE = [1, 8]
DTYPES = ["float32"]
ROUNDS = 9
PEERS = ["eager", "compile"]
ONE_PROGRAM = "vitpose-jax, one program"

_BASIC = {"hidden_sizes": (64, 128, 256, 512), "layer_type": "basic", "hidden_expansion": 0.5}
ARCHITECTURES = {
    "r18vd": {**_BASIC, "depths": (2, 2, 2, 2), "decoder_layers": 3},
    "r34vd": {**_BASIC, "depths": (3, 4, 6, 3), "decoder_layers": 4},
    "r50vd": {},
    "r101vd": {"depths": (3, 4, 23, 3), "encoder_hidden_size": 384, "encoder_ffn_size": 2048},
    TINY: {
        "image_size": (64, 96),
        "embedding_size": 8,
        "hidden_sizes": (8, 16, 24, 32),
        "depths": (1, 1, 1, 1),
        "layer_type": "basic",
        "encoder_hidden_size": 16,
        "hidden_size": 16,
        "decoder_layers": 1,
        "num_queries": 20,
    },
}


class DetectorPeer:
    """A detector of transformers, whose boxes go to a `Peer`."""

    def __init__(self, folder: str, peer: Peer, *, compiled: bool):
        import torch
        import transformers
        from transformers.models.rt_detr.image_processing_pil_rt_detr import RTDetrImageProcessorPil

        self.peer = peer
        self.processor = RTDetrImageProcessorPil.from_pretrained(folder)
        model = transformers.AutoModelForObjectDetection.from_pretrained(folder).to(peer.device, peer.dtype).eval()
        mode = "max-autotune" if peer.device == "cuda" else None
        self.network = torch.compile(model, mode=mode) if compiled else model

    def detect(self, image: np.ndarray, people: int):
        """Boxes (people, 4), x y w h in pixels of the image."""
        import torch

        pixels = self.processor(images=image, return_tensors="pt")["pixel_values"].to(self.peer.device, self.peer.dtype)
        with torch.inference_mode():
            outputs = self.network(pixels)
        outputs.logits, outputs.pred_boxes = outputs.logits.float(), outputs.pred_boxes.float()
        (objects,) = self.processor.post_process_object_detection(outputs, 0.0, [image.shape[:2]])
        boxes = objects["boxes"][objects["labels"] == 0][:people].cpu().numpy()
        boxes[:, 2:] -= boxes[:, :2]
        return boxes

    def chain(self, image: np.ndarray, people: int):
        """Keypoints of `people` boxes."""
        return self.peer.path(image, self.detect(image, people))


def prepare(options: argparse.Namespace, name: str, preset: str, dtype: str) -> tuple[Detector, PoseEstimator, dict]:
    """Our detector and estimator, and the peers, with the same weights."""
    # One class, so that every query is a person.
    config = DetectorConfig(labels=("person",), **ARCHITECTURES[name])
    pose = vitpose_config(preset, layer_norm_eps=1e-12)
    pose = pose.replace(skeletons=pose.skeletons[:1])
    with tempfile.TemporaryDirectory() as folder:
        write_detector(RtDetr(config, rngs=nnx.Rngs(0)), f"{folder}/detector")
        convert.write(VitPose(pose, rngs=nnx.Rngs(0)), f"{folder}/pose", to="huggingface")
        detector = Detector.from_pretrained(f"{folder}/detector", dtype=jnp.dtype(dtype), threshold=0)
        estimator = PoseEstimator.from_pretrained(f"{folder}/pose", dtype=jnp.dtype(dtype), detector=detector)
        peers = load(f"{folder}/pose", dtype, options.peers)
        for kind, peer in peers.items():
            peers[kind] = DetectorPeer(f"{folder}/detector", peer, compiled=kind == "compile")
    return detector, estimator, peers


def variants(stage: str, detector: Detector, estimator: PoseEstimator, peers: dict, people: int) -> dict[str, Callable]:
    """The programs of a stage."""
    image, _ = scene(people)
    if stage == "detect":
        return {OURS: lambda: detector(image, max_detections=people).boxes} | functions(
            peers, lambda peer: lambda: peer.detect(image, people)
        )
    detector = Detector(detector.model, threshold=0, max_detections=people)
    two = PoseEstimator(estimator.model, detector=detector)
    one = SingleProgramEstimator(estimator.model, detector, max_people=people)
    ours = {
        OURS: lambda: two(image, decode="transformers").keypoints,
        ONE_PROGRAM: lambda: one(image, decode="transformers").keypoints,
    }
    return ours | functions(peers, lambda peer: lambda: peer.chain(image, people))


def measure(options: argparse.Namespace) -> list[dict]:
    """One row for each stage, detector, model, dtype, number of people and program."""
    rows = []
    for name in options.detectors:
        for preset in options.presets:
            for dtype in options.dtypes:
                detector, estimator, peers = prepare(options, name, preset, dtype)
                for people in options.people:
                    for stage in ("detect", "chain"):
                        label = {"stage": stage, "detector": name, "preset": preset, "dtype": dtype, "people": people}
                        programs = variants(stage, detector, estimator, peers, people)
                        rows += timed_rows(label, programs, rounds=options.rounds)[0]
                        print(f"{name} {preset} {dtype} {people} {stage}", flush=True)
    return rows


def parser() -> argparse.ArgumentParser:
    """The options."""
    options = arguments(__doc__, presets=PRESETS, people=PEOPLE, dtypes=DTYPES, peers=PEERS, rounds=ROUNDS)
    options.add_argument("--detectors", nargs="+", default=DETECTORS, choices=list(ARCHITECTURES))
    return options


def main() -> None:
    """Measure, and report the table of the rows."""
    options = parser().parse_args()
    rows = measure(options)
    report(detection_table(rows), rows, options)


if __name__ == "__main__":
    main()
