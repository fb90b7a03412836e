"""Configurations, saving, devices, the detector and the auto classes beside those of transformers."""

import json
import sys
import types

import huggingface_hub
import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from transformers import VitPoseImageProcessorPil
from transformers.models.rt_detr.image_processing_pil_rt_detr import RTDetrImageProcessorPil

from tests.support import reference_rtdetr, reference_torch
from tests.tolerances import BLOCK, BOXES, DETECTOR, HEATMAPS
from vitpose_jax.bundled import DEFAULT_FINDER, DEFAULT_MODEL
from vitpose_jax.interop import transformers as ours
from vitpose_jax.interop.transformers.devices import Device, find_device
from vitpose_jax.skeletons import COCO
from vitpose_jax.vitpose.quantized import Quantization

pytestmark = pytest.mark.usefixtures("compiled_once")

SIZE = {"height": 64, "width": 48}


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plain")
    reference_torch.tiny_model(decoder="classic").save_pretrained(folder)
    VitPoseImageProcessorPil(size=SIZE).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=[1, 2], ids=["rt_detr", "rt_detr_v2"])
def detector(tmp_path_factory, request):
    model = reference_rtdetr.tiny_detector(request.param)
    return model, reference_rtdetr.save(model, tmp_path_factory.mktemp("detector"))


@pytest.fixture(scope="module")
def photograph(sample_folder):
    return Image.open(next(iter(sorted((sample_folder / "images").iterdir())))).convert("RGB")


def test_defaults_of_the_backbone_config():
    mine, theirs = ours.VitPoseBackboneConfig(), transformers.VitPoseBackboneConfig()
    for name in ours.VitPoseBackboneConfig.DEFAULTS.keys() - {"out_features", "out_indices"}:
        value = getattr(theirs, name)
        assert getattr(mine, name) == (list(value) if isinstance(value, tuple) else value), name


def test_defaults_of_the_config():
    mine, theirs = ours.VitPoseConfig(), transformers.VitPoseConfig()
    for name in ("initializer_range", "scale_factor", "use_simple_decoder", "num_labels", "id2label", "label2id"):
        assert getattr(mine, name) == getattr(theirs, name), name
    own = mine.to_own()
    assert own.out_indices == tuple(theirs.backbone_config.out_indices) == (4,)
    assert (own.decoder, own.hidden_size, own.layer_norm_eps) == ("simple", 768, 1e-12)


def test_every_argument_of_the_configs():
    backbone = {"image_size": [32, 16], "patch_size": [8, 8], "num_channels": 1, "hidden_size": 16, "mlp_ratio": 2}
    backbone |= {"num_hidden_layers": 3, "num_attention_heads": 4, "num_experts": 6, "part_features": 5}
    backbone |= {"hidden_act": "relu", "initializer_range": 0.1, "layer_norm_eps": 1e-6, "qkv_bias": False}
    values = {"scale_factor": 2, "use_simple_decoder": True, "num_labels": 17}
    own = ours.VitPoseConfig(ours.VitPoseBackboneConfig(**backbone), **values).to_own()
    assert ours.VitPoseConfig(backbone, **values).to_own() == own
    assert (own.image_size, own.patch_size, own.num_channels) == ((32, 16), (8, 8), 1)
    assert (own.hidden_size, own.mlp_ratio, own.num_layers, own.num_heads) == (16, 2, 3, 4)
    assert (own.num_experts, own.part_features, own.hidden_act) == (6, 5, "relu")
    assert (own.initializer_range, own.layer_norm_eps, own.qkv_bias, own.scale_factor) == (0.1, 1e-6, False, 2)
    assert own.skeletons[0].num_keypoints == 17
    for unknown in ({"backbone": "resnet50"}, {"use_timm_backbone": True}):
        with pytest.raises(ValueError, match=next(iter(unknown))):
            ours.VitPoseConfig(**unknown).to_own()
    harmless = {"use_pretrained_backbone": True, "backbone_kwargs": {"out_indices": [1]}}
    assert ours.VitPoseConfig(**harmless).to_own() == ours.VitPoseConfig().to_own()


def test_a_config_is_written_and_read(tmp_path, plain):
    config = ours.VitPoseConfig.from_pretrained(plain)
    config.save_pretrained(tmp_path)
    assert ours.VitPoseConfig.from_pretrained(tmp_path) == config
    assert transformers.VitPoseConfig.from_pretrained(tmp_path).to_dict()["id2label"] == config.id2label
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "vitpose"


def test_a_model_with_random_weights():
    config = ours.VitPoseConfig({"image_size": [32, 16], "hidden_size": 8, "num_attention_heads": 2}, num_labels=3)
    model = ours.VitPoseForPoseEstimation(config)
    assert model.config is config
    assert model.eval()(np.zeros((2, 3, 32, 16), np.float32)).heatmaps.shape == (2, 3, 8, 4)
    with pytest.raises(ValueError, match=r"crops: expected \(n, 32, 16, 3\)"):
        model(np.zeros((2, 3, 16, 32), np.float32))
    with pytest.raises(ValueError, match=r"expected \(n, channels, height, width\)"):
        model(np.zeros((3, 32, 16), np.float32))


def test_a_saved_model_loads_in_transformers(plain, tmp_path):
    model = ours.VitPoseForPoseEstimation.from_pretrained(plain)
    model.save_pretrained(tmp_path)
    ours.AutoProcessor.from_pretrained(plain).save_pretrained(tmp_path)
    theirs, report = transformers.VitPoseForPoseEstimation.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    original = transformers.VitPoseForPoseEstimation.from_pretrained(plain)
    for name, tensor in original.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            assert torch.equal(theirs.state_dict()[name], tensor), name
    assert model.num_parameters() == original.num_parameters()
    processor = VitPoseImageProcessorPil.from_pretrained(tmp_path)
    assert dict(processor.size) == SIZE and list(processor.image_mean) == ours.VitPoseImageProcessor().image_mean


def test_push_to_hub(plain, monkeypatch):
    calls = []

    class FakeApi:
        def __init__(self, token=None):
            calls.append(("token", token))

        def create_repo(self, repo_id, **options):
            calls.append(("create_repo", repo_id, options))
            return types.SimpleNamespace(repo_id=f"me/{repo_id}")

        def upload_folder(self, *, repo_id, folder_path, commit_message, revision):
            model = ours.VitPoseForPoseEstimation.from_pretrained(folder_path)
            calls.append(("upload_folder", repo_id, model.config.model_type, commit_message, revision))
            return "commit"

    monkeypatch.setattr(huggingface_hub, "HfApi", FakeApi)
    model = ours.VitPoseForPoseEstimation.from_pretrained(plain)
    assert model.push_to_hub("tiny", commit_message="First", private=True, token="secret") == "commit"
    assert calls == [
        ("token", "secret"),
        ("create_repo", "tiny", {"private": True, "exist_ok": True}),
        ("upload_folder", "me/tiny", "vitpose", "First", None),
    ]


def test_the_revision_goes_to_the_hub(plain, monkeypatch):
    asked = []

    def snapshot_download(repo_id, **options):
        asked.append((repo_id, options["revision"], "model.safetensors" in options["allow_patterns"]))
        return str(plain)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    ours.AutoProcessor.from_pretrained("user/pose", revision="v1")
    assert {weights for *_, weights in asked} == {False}
    ours.VitPoseForPoseEstimation.from_pretrained("user/pose", revision="v1")
    assert {(name, revision) for name, revision, _ in asked} == {("user/pose", "v1")} and asked[-1][2]


def test_devices(plain):
    assert ours.infer_device() == "cpu"
    for name in ("cpu", "cpu:0", "auto", None, torch.device("cpu"), {"": "cpu"}, 0):
        model = ours.VitPoseForPoseEstimation.from_pretrained(plain, device_map=name)
        assert model.device == "cpu" and model.device.type == "cpu" and model.device.index is None
        assert torch.zeros(1, device=model.device).device.type == "cpu"
    assert ours.VitPoseForPoseEstimation.from_pretrained(plain, device="cpu").to("cpu:0").device == "cpu"
    assert Device("cuda:1").type == "cuda" and Device("cuda:1").index == 1
    for name in ("cuda", "mps", "cpu:99", 7):
        with pytest.raises(ValueError, match="device: expected one that JAX has"):
            find_device(name)
    with pytest.raises(ValueError, match="one device for the whole model"):
        find_device({"backbone": 0, "head": 1})
    with pytest.raises(TypeError, match="from_pretrained: unexpected max_memory"):
        ours.VitPoseForPoseEstimation.from_pretrained(plain, max_memory={})


def test_defaults_of_a_call_from_the_configuration(plain):
    model = ours.VitPoseForPoseEstimation.from_pretrained(plain, output_hidden_states=True, return_dict=False)
    heatmaps, states = model(np.zeros((1, 3, 64, 48), np.float32))
    assert heatmaps.shape == (1, 17, 16, 12) and len(states) == 3


def test_edges_of_the_configuration(plain):
    """The published checkpoints have them in their config.json; without, they follow from the labels."""
    model = ours.VitPoseForPoseEstimation.from_pretrained(plain)
    assert model.config.edges == [list(edge) for edge in COCO.edges]


def test_a_native_checkpoint(plain):
    processor = ours.AutoProcessor.from_pretrained(DEFAULT_MODEL)
    model = ours.AutoModelForPoseEstimation.from_pretrained(DEFAULT_MODEL)
    assert tuple(processor.size.values()) == model.network.config.image_size
    assert model.config.num_labels == 17 and model.config.id2label[0] == "Nose"
    assert len(model.config.edges) == 19


class Int4WeightOnlyConfig:
    """As torchao's."""

    group_size = 12


@pytest.mark.parametrize(
    ("config", "quantization"),
    [
        (ours.TorchAoConfig("int4_weight_only", group_size=24), Quantization(kind="int4", group_size=24)),
        (ours.TorchAoConfig(Int4WeightOnlyConfig()), Quantization(kind="int4", group_size=12)),
        (ours.TorchAoConfig("int8_weight_only"), Quantization(kind="int8")),
    ],
)
def test_quantized_models(plain, tmp_path, config, quantization):
    model = ours.VitPoseForPoseEstimation.from_pretrained(plain, quantization_config=config)
    assert model.network.quantization == quantization
    assert model.num_parameters() == ours.VitPoseForPoseEstimation.from_pretrained(plain).num_parameters()
    crops = np.random.default_rng(0).normal(size=(2, 3, 64, 48)).astype(np.float32)
    heatmaps = model(crops).heatmaps
    model.save_pretrained(tmp_path)
    reference = transformers.VitPoseForPoseEstimation.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        expected = reference(torch.tensor(crops)).heatmaps
    np.testing.assert_allclose(heatmaps, expected, rtol=0, atol=HEATMAPS)


def test_unknown_quantizations(plain):
    assert "int4_weight_only" in repr(ours.TorchAoConfig("int4_weight_only"))
    for config in (ours.TorchAoConfig("float8_weight_only"), object()):
        with pytest.raises(ValueError, match="expected a TorchAoConfig with int4_weight_only or int8_weight_only, got"):
            ours.VitPoseForPoseEstimation.from_pretrained(plain, quantization_config=config)
    with pytest.raises(ValueError, match="group_size: expected a divisor of the 24 inputs"):
        ours.VitPoseForPoseEstimation.from_pretrained(plain, quantization_config=ours.TorchAoConfig("int4_weight_only"))


def test_detectors_are_not_quantized(detector):
    config = ours.TorchAoConfig("int8_weight_only")
    with pytest.raises(ValueError, match="quantization_config: expected none for a detector"):
        ours.RTDetrForObjectDetection.from_pretrained(detector[1], quantization_config=config)


def test_without_torch(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ValueError, match="install torch"):
        ours.VitPoseImageProcessor()(np.zeros((8, 8, 3), np.uint8), boxes=[[[0, 0, 4, 4]]], return_tensors="pt")


@pytest.mark.slow
def test_the_detector(detector, photograph):
    reference, folder = detector
    mine = ours.AutoProcessor.from_pretrained(folder)
    theirs = RTDetrImageProcessorPil.from_pretrained(folder)
    inputs, expected_inputs = (p(images=photograph, return_tensors="pt") for p in (mine, theirs))
    np.testing.assert_allclose(inputs.pixel_values, expected_inputs.pixel_values, rtol=0, atol=BLOCK)
    kind = ours.RTDetrV2ForObjectDetection if "v2" in reference.config.model_type else ours.RTDetrForObjectDetection
    model = kind.from_pretrained(folder, device_map=ours.infer_device())
    with torch.no_grad():
        expected = reference(**inputs)
        outputs = model(**inputs.to(model.device))
    for name in outputs:
        np.testing.assert_allclose(outputs[name], expected[name], rtol=0, atol=DETECTOR, err_msg=name)
    assert model(**inputs, return_dict=False)[1].shape == outputs.pred_boxes.shape
    sizes = torch.tensor([(photograph.height, photograph.width)])
    for options in ({"target_sizes": sizes, "threshold": 0.3}, {"target_sizes": [tuple(sizes[0])]}, {}):
        found, expected_found = (p.post_process_object_detection(expected, **options)[0] for p in (mine, theirs))
        assert len(found["scores"]) == len(expected_found["scores"]) > 0
        np.testing.assert_array_equal(found["labels"], expected_found["labels"])
        np.testing.assert_allclose(found["boxes"], expected_found["boxes"], rtol=0, atol=BOXES)
        np.testing.assert_allclose(found["scores"], expected_found["scores"], rtol=0, atol=HEATMAPS)
        assert {value.dtype for value in found.values()} == {value.dtype for value in expected_found.values()}
    with pytest.raises(ValueError, match="target_sizes: expected"):
        mine.post_process_object_detection(expected, target_sizes=[(1, 1), (2, 2)])
    with pytest.raises(ValueError, match="use_focal_loss: expected True"):
        mine.post_process_object_detection(expected, use_focal_loss=False)


def test_a_saved_detector_loads_in_transformers(detector, tmp_path):
    reference, folder = detector
    ours.AutoModelForObjectDetection.from_pretrained(folder).save_pretrained(tmp_path)
    _, report = type(reference).from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    with pytest.raises(ValueError, match="expected an RT-DETR, got a PersonFinder"):
        ours.RTDetrForObjectDetection.from_pretrained(DEFAULT_FINDER)


@pytest.mark.slow
def test_a_detector_with_random_weights(detector):
    reference, _ = detector
    config = ours.RTDetrConfig(**json.loads(json.dumps(reference.config.to_dict(), default=str)))
    model = ours.RTDetrForObjectDetection(config)
    assert model.network.config.labels == reference_rtdetr.LABELS
