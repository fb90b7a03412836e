"""Draws a run of speed.py: time and people per second against the number of people. Needs matplotlib.

    python benchmarks/plot.py                                                   # docs/speed.png
    python benchmarks/plot.py benchmarks/results/gpu_people.json speed_gpu.png

The run needs several numbers of people: `python benchmarks/speed.py --people 1 2 4 8 16 32 64 --stages path`.
"""

import argparse
import json
import pathlib

from reports import PROGRAMS, RESULTS, ROOT

SOURCE = RESULTS / "cpu_avx512_people.json"
TARGET = ROOT / "docs" / "speed.png"


def draw(document: dict, preset: str, dtype: str, target: pathlib.Path) -> None:
    """Draw the rows of the whole path in two panels."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    wanted = {"stage": "path", "preset": preset, "dtype": dtype, "flip": False}
    rows = [row for row in document["rows"] if all(row.get(name) == value for name, value in wanted.items())]
    if not rows:
        raise SystemExit(f"expected rows of the stage 'path' with preset {preset!r} and dtype {dtype!r}, found none")
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    for program in dict.fromkeys(row["program"] for row in rows):
        points = sorted((row["people"], row["ms"]) for row in rows if row["program"] == program)
        people, ms = zip(*points, strict=True)
        label = PROGRAMS.get(program, program)
        left.plot(people, ms, marker="o", label=label)
        right.plot(people, [1e3 * n / t for n, t in points], marker="o", label=label)
    for axis, title in ((left, "milliseconds per call"), (right, "people per second")):
        axis.set(xscale="log", xlabel="people in the image", title=title)
        axis.set_xticks(people, labels=map(str, people))
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    left.set_yscale("log")
    right.set_ylim(bottom=0)
    right.legend()
    machine = document["machine"]
    device = machine["processor"] if machine["device"] == "cpu" else machine["device"]
    versions = f"jax {machine['jax']}, torch {machine['torch']}"
    title = f"{preset}, {dtype}, image and boxes to keypoints; {device}, {versions}"
    figure.suptitle(title, fontsize=9)
    figure.savefig(target, dpi=110)
    pyplot.close(figure)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("source", type=pathlib.Path, nargs="?", default=SOURCE, help="JSON file that speed.py wrote")
    options.add_argument("target", type=pathlib.Path, nargs="?", default=TARGET, help="image to write")
    options.add_argument("--preset", help="default: the first one of the run")
    options.add_argument("--dtype", help="default: the first one of the run")
    return options


def main() -> None:
    """Read the run and draw it."""
    options = parser().parse_args()
    document = json.loads(options.source.read_text())
    preset = options.preset or document["options"]["presets"][0]
    dtype = options.dtype or document["options"]["dtypes"][0]
    draw(document, preset, dtype, options.target)
    print(options.target)


if __name__ == "__main__":
    main()
