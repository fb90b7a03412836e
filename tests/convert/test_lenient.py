"""Unknown keys of a config.json: an error that says how to pass over them, and a warning where one does."""

import inspect
import json

import pytest

from tests.support import reference_rtdetr
from tests.support.cli import run
from tests.support.models import assert_same_model, smallest_model
from vitpose_jax import Detector, checkpoint, from_pretrained
from vitpose_jax.bundled import DEFAULT_FINDER
from vitpose_jax.cli import checkpoints, detect, evaluate, export, predict, video, web
from vitpose_jax.convert import convert, write
from vitpose_jax.convert.detectors import load_detector, write_finder
from vitpose_jax.convert.formats.format import known_keys
from vitpose_jax.pretrained import describe

NAMED = r"config.json: passed over unknown keys, which may matter: swiglu \(True\), {part}rope \(\{{'base': 100\}}\)"


def add_keys(folder, part):
    """Write unknown keys into a folder's config.json, at the top and in a part of it."""
    path = folder / "config.json"
    values = json.loads(path.read_text())
    values["swiglu"] = True
    inner = values[part][0] if part == "skeletons" else values[part]
    inner["rope"] = {"base": 100}
    path.write_text(json.dumps(values))


@pytest.mark.parametrize(("to", "part"), [("native", "skeletons"), ("huggingface", "backbone_config")])
def test_a_model_with_unknown_keys_is_read_where_one_says_so(tmp_path, to, part):
    model = smallest_model()
    write(model, tmp_path / "model", to=to)
    add_keys(tmp_path / "model", part)
    for read in (from_pretrained, describe, lambda path: convert(path, tmp_path / "converted")):
        with pytest.raises(ValueError, match="swiglu"):
            read(tmp_path / "model")
    named = NAMED.format(part=f"{part}.")
    with pytest.warns(UserWarning, match=named):
        assert_same_model(from_pretrained(tmp_path / "model", strict=False), model)
    with pytest.warns(UserWarning, match=named):
        assert describe(tmp_path / "model", strict=False).config == model.config
    with pytest.warns(UserWarning, match=named):
        convert(tmp_path / "model", tmp_path / "converted", strict=False)
    assert_same_model(checkpoint.load(tmp_path / "converted"), model)


def test_a_detector_with_unknown_keys_is_read_where_one_says_so(tmp_path):
    folder = reference_rtdetr.save(reference_rtdetr.tiny_detector(), tmp_path / "rtdetr")
    expected = load_detector(folder).config
    add_keys(folder, "backbone_config")
    with pytest.raises(ValueError, match="strict=False or --lenient passes over them"):
        Detector.from_pretrained(folder)
    with pytest.warns(UserWarning, match=NAMED.format(part="backbone_config.")):
        assert Detector.from_pretrained(folder, strict=False).config == expected


def test_a_finder_with_unknown_keys_is_read_where_one_says_so(tmp_path):
    finder = Detector.from_pretrained(DEFAULT_FINDER).model
    write_finder(finder, tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "tracking": 2}))
    with pytest.raises(ValueError, match="tracking"):
        Detector.from_pretrained(tmp_path)
    with pytest.warns(UserWarning, match=r"tracking \(2\)"):
        assert Detector.from_pretrained(tmp_path, strict=False).config == finder.config


def test_known_keys_with_wrong_values_stay_errors(tmp_path):
    write(smallest_model(), tmp_path, to="huggingface")
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "backbone": "resnet50"}))
    with pytest.raises(ValueError, match="backbone: expected"):
        from_pretrained(tmp_path, strict=False)


def test_values_of_another_type_than_expected_are_left_to_the_checks():
    assert known_keys({"a": 3}, {"a"}, {"a": {"b"}, "missing": {"c"}}, source="x", strict=False) == {"a": 3}
    with pytest.warns(UserWarning, match=r"x: .*: a.c \(4\), a.d \(5\)$"):
        assert known_keys({"a": [{"c": 4}, 1, {"b": 2, "d": 5}]}, {"a"}, {"a": {"b"}}, source="x", strict=False) == {
            "a": [{}, 1, {"b": 2}]
        }


def test_the_commands_have_the_option(tmp_path, capsys):
    write(smallest_model(), tmp_path / "model")
    add_keys(tmp_path / "model", "skeletons")
    status, _, err = run(capsys, "info", tmp_path / "model")
    assert status == 1 and "swiglu" in err and "--lenient" in err
    with pytest.warns(UserWarning, match="swiglu"):
        status, out, _ = run(capsys, "info", tmp_path / "model", "--lenient")
    assert status == 0 and "coco" in out
    commands = (checkpoints.convert, checkpoints.info, predict.predict, detect.detect, evaluate.evaluate)
    for command in (*commands, export.export, video.video, web.web):
        assert "lenient" in inspect.signature(command).parameters
