"""`predict_dataset` in this process: sources, rows, partitions, resuming. Ray's part is in test_ray.py."""

import io
import json
import pathlib
import sys
import tarfile

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
from PIL import Image

from tests.support.bulk import OPTIONS, smallest_estimator, write_images
from tests.support.cli import run
from tests.tolerances import KEYPOINTS
from vitpose_jax import PoseEstimator
from vitpose_jax.distributed import predict_dataset
from vitpose_jax.distributed.inputs import Columns, find_pieces
from vitpose_jax.distributed.output import Output

pytestmark = pytest.mark.usefixtures("compiled_once")


@pytest.fixture(scope="module")
def estimator() -> PoseEstimator:
    return smallest_estimator()


@pytest.fixture
def images(tmp_path) -> list[pathlib.Path]:
    return write_images(tmp_path / "images", 7)


@pytest.fixture
def predict(estimator, tmp_path):
    """`predict_dataset` in this process, to `tmp_path / "out"`."""

    def call(source, output="out", **options):
        options = {**OPTIONS, "images_per_partition": 3, "report": lambda _: None, **options}
        return predict_dataset(source, tmp_path / output, model=lambda: estimator, concurrency=0, **options)

    return call


def rows(folder: pathlib.Path) -> list[dict]:
    return parquet.read_table(folder).to_pylist()


def test_a_folder_becomes_partitions(predict, estimator, images, tmp_path):
    summary = predict(tmp_path / "images")
    assert (summary.partitions, summary.images, summary.people, summary.errors) == (3, 7, 7, 0)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "_run",
        *(f"poses-{number:06d}.parquet" for number in range(3)),
    ]
    table = rows(tmp_path / "out")
    assert [row["image"] for row in table] == list(map(str, images))
    assert [(row["partition"], row["index"]) for row in table] == [(n // 3, n % 3) for n in range(7)]
    for row, path in zip(table, images, strict=True):
        with Image.open(path) as image:
            assert (row["width"], row["height"]) == image.size
    # The rows of a partition are the poses of a stream of its images, to the bit.
    poses = list(estimator.stream([(path, "image") for path in images[:3]]))
    for row, expected in zip(table, poses, strict=False):
        np.testing.assert_array_equal(np.asarray(row["keypoints"], np.float32), expected.keypoints[0])
        np.testing.assert_array_equal(np.asarray(row["scores"], np.float32), expected.scores[0])
        np.testing.assert_array_equal(np.asarray(row["box"], np.float32), expected.boxes[0])
        assert row["box_score"] is None and row["person"] == 0 and row["error"] is None
    metadata = parquet.read_metadata(tmp_path / "out" / "poses-000000.parquet").metadata
    assert json.loads(metadata[b"skeletons"])["coco"][0] == "nose"


def test_broken_images_and_images_without_people_have_a_row(predict, tmp_path):
    write_images(tmp_path / "images", 3)
    (tmp_path / "images" / "broken.png").write_bytes(b"no image")
    (tmp_path / "images" / "notes.txt").write_text("no image, and no ending of one")
    boxes = [[[0, 0, 9, 9], [4, 4, 9, 9]], [], None]
    table = pa.table({"image": [b"no image", b"", None], "boxes": boxes})
    assert predict(tmp_path / "images").errors == 1
    (row,) = (row for row in rows(tmp_path / "out") if row["error"])
    assert row["image"].endswith("broken.png") and "expected an image" in row["error"]
    assert row["person"] is row["keypoints"] is row["width"] is None

    content = (tmp_path / "images" / "0" / "00000.png").read_bytes()
    table = pa.table({"image": [content, content, b"no image", None, content], "boxes": [*boxes[:2], [], [], None]})
    parquet.write_table(table, tmp_path / "source.parquet")
    options = {"whole_image": False, "boxes_column": "boxes"}
    summary = predict(tmp_path / "source.parquet", "boxed", **options)
    assert (summary.images, summary.people, summary.errors) == (5, 2, 3)
    found = [(row["image"].rpartition("#")[2], row["person"], row["error"]) for row in rows(tmp_path / "boxed")]
    assert [entry[:2] for entry in found] == [("0", 0), ("0", 1), ("1", None), ("2", None), ("3", None), ("4", None)]
    assert [entry[2] is None for entry in found] == [True, True, True, False, False, False]
    assert "got null" in found[4][2] and "expected boxes in 'boxes'" in found[5][2]


def test_all_kinds_of_sources_give_the_same_poses(predict, images, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    contents = [path.read_bytes() for path in images]
    names = [str(path) for path in images]
    (tmp_path / "list.txt").write_text(
        "\n".join([*names[:3], "", *(f"images/1/{path.name}" for path in images[4:]), "none.png"])
    )
    parquet.write_table(pa.table({"image": contents, "key": names}), tmp_path / "bytes.parquet", row_group_size=2)
    parquet.write_table(pa.table({"file": names}), tmp_path / "names.parquet")
    structs = [{"bytes": content, "path": None} for content in contents[:4]]
    structs += [{"bytes": None, "path": name} for name in names[4:]]
    parquet.write_table(pa.table({"image": structs}), tmp_path / "structs.parquet")
    for number, part in enumerate((slice(0, 3), slice(3, 7))):
        with tarfile.open(tmp_path / f"shard-{number:03d}.tar", "w") as archive:
            for path, content in zip(images[part], contents[part], strict=True):
                for name, data in ((path.name, content), (f"{path.stem}.json", b"{}")):
                    member = tarfile.TarInfo(f"data/{name}")
                    member.size = len(data)
                    archive.addfile(member, io.BytesIO(data))
    sources = {
        "folder": ("images", {}),
        "pattern": ("images/*/*.png", {}),
        "deep": ("images/**/0*.png", {}),
        "url": (f"file://{tmp_path}/images", {}),
        "bytes": ("bytes.parquet", {"id_column": "key"}),
        "names": ("names.parquet", {"image_column": "file"}),
        "structs": ("structs.parquet", {}),
        "shards": ("shard-{000..001}.tar", {}),
        "several": (["images/0", "images/1"], {}),
    }
    expected = None
    for name, (source, options) in sources.items():
        summary = predict(source, name, **options)
        assert (summary.images, summary.errors) == (7, 0), name
        table = rows(tmp_path / name)
        expected = expected or table
        for row, other in zip(table, expected, strict=True):
            # Pieces of two and five images make other batches than the same images together.
            np.testing.assert_array_equal(row["box"], other["box"], err_msg=name)
            np.testing.assert_allclose(row["keypoints"], other["keypoints"], rtol=0, atol=KEYPOINTS, err_msg=name)
        if name in ("folder", "pattern", "deep", "url", "bytes", "names", "several"):
            assert [row["image"] for row in table] == names, name
    assert rows(tmp_path / "shards")[0]["image"] == f"{tmp_path}/shard-000.tar/data/00000.png"
    assert rows(tmp_path / "structs")[0]["image"] == f"{tmp_path}/structs.parquet#0"
    # An entry of a list that does not exist has its row, too.
    assert predict("list.txt", "list").images == 7
    assert [row["image"] for row in rows(tmp_path / "list") if row["error"]] == [f"{tmp_path}/none.png"]


def test_a_store_of_objects(predict, images, tmp_path):
    """What PyArrow does not know goes through fsspec: its store in memory stands for a cloud."""
    store = fsspec.filesystem("memory")
    for path in images:
        store.pipe(f"/bucket/images/{path.name}", path.read_bytes())
    predict(tmp_path / "images", "here")
    messages = []
    for _ in range(2):
        summary = predict_dataset(
            "memory://bucket/images",
            "memory://bucket/poses",
            model=smallest_estimator,
            concurrency=0,
            images_per_partition=3,
            report=messages.append,
            **OPTIONS,
        )
    assert (summary.skipped, summary.images) == (3, 0) and "3 of 3 partitions" in messages[0]
    with store.open("/bucket/poses/poses-000000.parquet") as file:
        table = parquet.read_table(file).to_pylist()
    assert [row["image"] for row in table] == [f"memory://bucket/images/{number:05d}.png" for number in range(3)]
    assert not [name for name in store.find("/bucket") if name.endswith(".tmp")]
    store.rm("/bucket", recursive=True)


def test_damaged_archives_say_what_is_lost(predict, images, tmp_path):
    with tarfile.open(tmp_path / "whole.tar", "w") as archive:
        for path in images:
            archive.add(path, path.name)
    content = (tmp_path / "whole.tar").read_bytes()
    end = content.rindex(images[-1].read_bytes()[-20:])
    for name, length in {"cut": end, "unended": 512 * (end // 512 + 1), "none": 100}.items():
        (tmp_path / f"{name}.tar").write_bytes(content[:length])
        count = {"cut": 6, "unended": 7, "none": 0}[name]
        summary = predict(tmp_path / f"{name}.tar", name)
        assert (summary.images, summary.errors) == (count + 1, 1), name
        assert "archive" in rows(tmp_path / name)[-1]["error"], name


def test_a_later_run_computes_what_is_missing(predict, images, tmp_path):
    predict(tmp_path / "images")
    whole = {path.name: path.read_bytes() for path in (tmp_path / "out").glob("*.parquet")}
    (tmp_path / "out" / "poses-000001.parquet").unlink()
    (tmp_path / "out" / "_run" / "poses-000001.parquet.0.tmp").write_bytes(b"of a killed worker")
    write_images(tmp_path / "images" / "late", 2)
    summary = predict(tmp_path / "images")
    assert (summary.skipped, summary.images) == (2, 3)
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").glob("*.parquet")} == whole
    assert sorted(path.name for path in (tmp_path / "out" / "_run").iterdir()) == [
        "manifest.parquet",
        "model.jsonl",
        "settings.jsonl",
    ]
    # The manifest is not written twice: images that came later are not seen. Overwriting sees them.
    assert predict(tmp_path / "images", overwrite=True).images == 9


def test_other_settings_are_refused(predict, images, tmp_path):
    predict(tmp_path / "images")
    for options, message in {
        "flip": ({"flip_test": True}, "flip_test was false, now true"),
        "partition": ({"images_per_partition": 2}, "images_per_partition was 3, now 2"),
    }.values():
        with pytest.raises(ValueError, match=message):
            predict(tmp_path / "images", **options)
    (tmp_path / "out" / "poses-000001.parquet").unlink()
    # The same name, other weights.
    record = tmp_path / "out" / "_run" / "model.jsonl"
    record.write_text(record.read_text().replace('"dtype": "float32"', '"dtype": "bfloat16"'))
    with pytest.raises(ValueError, match='dtype was "bfloat16", now "float32"'):
        predict(tmp_path / "images")
    (tmp_path / "out" / "_run" / "settings.jsonl").unlink()
    with pytest.raises(ValueError, match=r"holds results without _run/settings.jsonl"):
        predict(tmp_path / "images")


def test_settings_count_from_the_first_worker_on(images, tmp_path):
    """Two runs that begin together: the second replaces the settings, so the first one must not write."""
    first, second = Output(str(tmp_path / "out")), Output(str(tmp_path / "out"))

    def find():
        return find_pieces([tmp_path / "images"], images_per_partition=3, columns=Columns("image", None, None))

    def start(output, settings):
        return output.start(settings, find, overwrite=False)

    start(first, {"flip_test": False})
    assert start(second, {"flip_test": True}).partitions == 3
    with pytest.raises(ValueError, match="flip_test was true, now false"):
        first.check_model({"model_sha256": "a"})
    second.check_model({"model_sha256": "a"})
    with pytest.raises(ValueError, match="flip_test was true, now false"):
        start(first, {"flip_test": False})


def test_a_killed_overwrite_leaves_no_mixture(predict, images, tmp_path, monkeypatch):
    """Old results go before their settings do."""
    from vitpose_jax.distributed import output

    predict(tmp_path / "images")
    deleted = []
    monkeypatch.setattr(output, "delete_files", lambda names: deleted.append(names))
    predict(tmp_path / "images", overwrite=True)
    assert all("poses-" in name for name in deleted[0]) and deleted[1][-1].endswith("settings.jsonl")


@pytest.mark.parametrize(
    ("options", "message"),
    {
        "empty": ({"source": "empty"}, "empty: no files there"),
        "missing": ({"source": "nothing"}, "nothing: no such file or folder"),
        "mixed": ({"source": "mixed"}, "expected images, Parquet files or .tar archives, got .* give a pattern"),
        "columns": ({"source": "mixed/a.parquet"}, "expected a column 'image', got other"),
        "scheme": ({"source": "nowhere://bucket/images"}, "expected files of this machine or of a cloud"),
        "dataset": ({"dataset": "ap10k"}, "ap10k"),
        "partition": ({"images_per_partition": 0}, "images_per_partition: expected at least 1, got 0"),
        "boxes": ({"boxes_column": "boxes"}, "expected whole_image, boxes_column, or a detector"),
    }.values(),
)
def test_bad_options_are_one_clear_error(predict, images, tmp_path, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "mixed").mkdir()
    (tmp_path / "mixed" / "a.png").write_bytes(b"")
    parquet.write_table(pa.table({"other": [1]}), tmp_path / "mixed" / "a.parquet")
    with pytest.raises(ValueError, match=message):
        predict(**{"source": "images", **options})
    assert not list(tmp_path.glob("out/*.parquet"))


def test_without_ray_one_line_names_the_extra(capsys, images, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    status, _, said = run(capsys, "bulk", tmp_path / "images", "--output", tmp_path / "out")
    assert status == 1 and said.count("\n") == 1
    assert 'pip install "vitpose-jax[ray]"' in said
    assert not (tmp_path / "out").exists()


def test_the_command(capsys, images, tmp_path):
    (tmp_path / "images" / "broken.png").write_bytes(b"no image")
    options = ["--output", tmp_path / "out", "--whole-image", "--concurrency", "0", "--images-per-partition", "4"]
    status, printed, said = run(capsys, "bulk", tmp_path / "images", *options)
    assert status == 1 and "8 images and 7 people in 2 of 2 partitions" in printed
    assert "1 images failed; their rows have an error" in said
    assert len(rows(tmp_path / "out")) == 8
    status, printed, said = run(capsys, "bulk", tmp_path / "images", *options)
    assert status == 0 and "2 of 2 partitions are done already" in said
    status, _, said = run(capsys, "bulk", tmp_path / "images", *options, "--resource", "TPU")
    assert status == 1 and "--resource: expected NAME=NUMBER" in said


def test_an_address_without_a_cluster_is_one_clear_error(capsys, images, tmp_path):
    options = ["--output", tmp_path / "out", "--whole-image", "--address", "127.0.0.1:1"]
    status, _, said = run(capsys, "bulk", tmp_path / "images", *options)
    assert status == 1 and "error: 127.0.0.1:1: no Ray cluster answers there" in said and said.count("\n") == 1
