"""Draw a table of speed.py: time and people per second against the number of people.

python benchmarks/plot.py results/cpu_people.json docs/speed.png --preset base
"""

import argparse
import json
import pathlib

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot

NAMES = {"eager": "transformers", "compile": "transformers, torch.compile"}


def main() -> None:
    """Read the rows of the whole path and draw two panels."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=pathlib.Path, help="JSON written by speed.py")
    parser.add_argument("target", type=pathlib.Path, help="image to write")
    parser.add_argument("--preset", default="base")
    parser.add_argument("--dtype", default="float32")
    options = parser.parse_args()
    document = json.loads(options.source.read_text())
    wanted = {"stage": "path", "preset": options.preset, "dtype": options.dtype, "flip": False}
    rows = [row for row in document["rows"] if all(row.get(name) == value for name, value in wanted.items())]
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    for program in dict.fromkeys(row["program"] for row in rows):
        mine = sorted((row["people"], row["ms"]) for row in rows if row["program"] == program)
        people, ms = zip(*mine, strict=True)
        label = NAMES.get(program, program)
        left.plot(people, ms, marker="o", label=label)
        right.plot(people, [1e3 * n / t for n, t in mine], marker="o", label=label)
    for axis, title in ((left, "milliseconds a call"), (right, "people a second")):
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
    title = f"{options.preset}, {options.dtype}, image and boxes to keypoints; {device}, {versions}"
    figure.suptitle(title, fontsize=9)
    figure.savefig(options.target, dpi=110)
    print(options.target)


if __name__ == "__main__":
    main()
