"""From an image to its people: RT-DETR, then ViTPose, beside the same chain of transformers, in one run.

    python benchmarks/detection.py                                        # the defaults below
    python benchmarks/detection.py --detectors r18vd r50vd --people 1 8 --dtypes bfloat16 --output gpu-detection
    python benchmarks/detection.py --detectors tiny --preset tiny --rounds 2    # to see that it runs

Warm and interleaved (A B A B ...), medians, the fastest and slowest tenth, and the time of the first call, which
compiles. The same random weights go to all. A random detector is sure of nothing, so `people` boxes are taken from it
whatever their scores: all chains do the same work. Stages:

    detect    image to boxes: resizing, network, what is read out of it
    chain     image to keypoints: detect, crop, pose network, decoding; ours in two programs and in one
"""

import argparse
import statistics
import tempfile
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from common import arguments, markdown, measure_and_report, spread, take_turns
from flax import nnx
from peers import Peer, functions, load
from speed import scene

from vitpose_jax import Detector, PoseEstimator, SingleProgramEstimator, VitPose, VitPoseConfig, convert
from vitpose_jax.convert.detectors import write_detector
from vitpose_jax.rtdetr.config import DetectorConfig
from vitpose_jax.rtdetr.modeling import RtDetr

DETECTORS = ["r50vd"]
PRESET = "base-simple"
PEOPLE = [1, 8]
DTYPES = ["float32"]
ROUNDS = 9
PEERS = ["eager", "compile"]
OURS, ONE = "vitpose-jax", "vitpose-jax, one program"

_BASIC = {"hidden_sizes": (64, 128, 256, 512), "layer_type": "basic", "hidden_expansion": 0.5}
ARCHITECTURES = {
    "r18vd": {**_BASIC, "depths": (2, 2, 2, 2), "decoder_layers": 3},
    "r34vd": {**_BASIC, "depths": (3, 4, 6, 3), "decoder_layers": 4},
    "r50vd": {},
    "r101vd": {"depths": (3, 4, 23, 3), "encoder_hidden_size": 384, "encoder_ffn_size": 2048},
    "tiny": {
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
        """Boxes x y w h of so many people."""
        import torch

        pixels = self.processor(images=image, return_tensors="pt")["pixel_values"].to(self.peer.device, self.peer.dtype)
        with torch.inference_mode():
            outputs = self.network(pixels)
        outputs.logits, outputs.pred_boxes = outputs.logits.float(), outputs.pred_boxes.float()
        (found,) = self.processor.post_process_object_detection(outputs, 0.0, [image.shape[:2]])
        boxes = found["boxes"][found["labels"] == 0][:people].cpu().numpy()
        boxes[:, 2:] -= boxes[:, :2]
        return boxes

    def chain(self, image: np.ndarray, people: int):
        """Keypoints of so many people."""
        return self.peer.path(image, self.detect(image, people))


def prepare(options: argparse.Namespace, name: str, dtype: str) -> tuple[Detector, PoseEstimator, dict]:
    """Our detector and estimator, and the peers, with the same weights."""
    # One class, so that every query is a person.
    config = DetectorConfig(labels=("person",), **ARCHITECTURES[name])
    tiny = {"hidden_size": 16, "num_heads": 2, "num_layers": 1, "decoder": "simple"}
    pose = VitPoseConfig(**tiny) if options.preset == "tiny" else VitPoseConfig.preset(options.preset)
    pose = pose.replace(skeletons=pose.skeletons[:1], layer_norm_eps=1e-12)
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
    """What takes turns."""
    image, _ = scene(people)
    if stage == "detect":
        return {OURS: lambda: detector(image, max_detections=people).boxes} | functions(
            peers, lambda peer: lambda: peer.detect(image, people)
        )
    found = Detector(detector.model, threshold=0, max_detections=people)
    two = PoseEstimator(estimator.model, detector=found)
    one = SingleProgramEstimator(estimator.model, found, max_people=people)
    ours = {
        OURS: lambda: two(image, decode="transformers").keypoints,
        ONE: lambda: one(image, decode="transformers").keypoints,
    }
    return ours | functions(peers, lambda peer: lambda: peer.chain(image, people))


def measure(options: argparse.Namespace) -> list[dict]:
    """One row for each stage, detector, dtype, number of people and program."""
    rows = []
    for name in options.detectors:
        for dtype in options.dtypes:
            detector, estimator, peers = prepare(options, name, dtype)
            for people in options.people:
                for stage in ("detect", "chain"):
                    first, times = take_turns(variants(stage, detector, estimator, peers, people), options.rounds)
                    ours = statistics.median(times[OURS])
                    rows += [
                        {
                            "stage": stage,
                            "detector": name,
                            "preset": options.preset,
                            "dtype": dtype,
                            "people": people,
                            "program": program,
                            **spread(values),
                            "ratio": statistics.median(values) / ours,
                            "first_ms": 1e3 * first[program],
                        }
                        for program, values in times.items()
                    ]
                    print(f"{name} {dtype} {people} {stage}", flush=True)
    return rows


def table(rows: list[dict]) -> str:
    """Markdown."""
    names = ("stage", "detector", "preset", "dtype", "people", "program")
    header = [*names, "median, ms", "10 % to 90 %", "x ours", "first call, ms"]
    return markdown(
        header,
        [
            [
                *(str(row[name]) for name in names),
                f"{row['ms']:.2f}",
                f"{row['low_ms']:.2f} to {row['high_ms']:.2f}",
                f"{row['ratio']:.2f}",
                f"{row['first_ms']:.0f}",
            ]
            for row in rows
        ],
    )


def main() -> None:
    """Parse the knobs, measure, and write JSON and Markdown into results/."""
    parser = arguments(__doc__, dtypes=DTYPES, peers=PEERS, rounds=ROUNDS)
    parser.add_argument("--detectors", nargs="+", default=DETECTORS, choices=list(ARCHITECTURES))
    parser.add_argument("--preset", default=PRESET, help='of ViTPose; or "tiny"')
    parser.add_argument("--people", nargs="+", type=int, default=PEOPLE)
    measure_and_report(parser, measure, table)


if __name__ == "__main__":
    main()
