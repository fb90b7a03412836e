"""Tables of right and wrong: parity, the bundled models, and what int8 and int4 change."""

from reports import Row, caption, markdown, moved, read


def parity_table(rows: list[Row]) -> str:
    """Differences from transformers, load time and memory."""
    columns = {
        "parameters": ("parameters_millions", "{:.2f} M"),
        "file": ("file_mb", "{:.0f} MB"),
        "load": ("load_s", "{:.1f} s"),
        "peak memory": ("peak_memory_mb", "{:.0f} MB"),
        "heatmaps": ("heatmaps", "{:.1e}"),
        "fraction of the largest": ("heatmaps_fraction", "{:.1e}"),
        "keypoints, same crops": ("keypoints_same_crops_px", "{:.1e} px"),
        "keypoints, whole pipeline": ("keypoints_pipeline_px", "{:.1e} px"),
        "within 0.01 px": ("within_0.01_px", "{}"),
    }
    cells = [[row["model"], *(form.format(row[name]) for name, form in columns.values())] for row in rows]
    return markdown(["model", *columns], cells, numbers=len(columns))


def small_open() -> str:
    """Accuracy of the bundled model in annotated boxes and in those of the bundled finder."""
    rows = {"annotated": read("small_open/metrics.json"), "person-finder": read("small_open/metrics_detected.json")}
    statistics = ("AP", "AP50", "AP75", "AP(M)", "AP(L)", "AR")
    lines = [
        [boxes, str(document["counts"]["images"]), *(f"{document['metrics'][name]:.3f}" for name in statistics)]
        for boxes, document in rows.items()
    ]
    return markdown(["boxes", "images", *statistics], lines, numbers=7)


def person_finder() -> str:
    """Accuracy of the bundled finder, as `vitpose-jax evaluate --task detection` wrote it."""
    document = read("person_finder/metrics.json")
    counts, metrics = document["counts"], document["metrics"]
    points = {point["min_precision"]: point for point in document["operating_points"]}
    line = [str(counts["people"]), str(counts["images"])]
    line += [f"{metrics[name]:.3f}" for name in ("AP", "AP50", "AP75", "AR")]
    line += [f"{points[0.8]['recall']:.3f}", f"{points[0.8]['recall_tall']:.3f}"]
    header = ["people", "images", "AP", "AP50", "AP75", "AR", "recall at precision 0.8", "of tall people"]
    return markdown(header, [line], numbers=8)


def calibration_table(rows: list[Row], correlations: dict[str, float]) -> str:
    """What a keypoint's score says about its distance from the label."""
    lines = [
        [
            f"{row['low']:.1f} to {row['high']:.1f}" if row["high"] is not None else f"{row['low']:.1f} and more",
            str(row["keypoints"]),
            f"{row['closeness']:.2f}",
            f"{100 * row['near']:.0f} %",
        ]
        for row in rows
    ]
    text = markdown(["score", "keypoints", "mean closeness", "closer than 0.5"], lines, numbers=3)
    return (
        f"{text}\n\nCorrelation of ranks with the closeness: {correlations['score']:.2f} of the score, "
        f"{correlations['width']:.2f} of the width."
    )


def calibration() -> str:
    """The table of calibration.py."""
    document = read("small_open/calibration.json")
    return f"{caption(document)}\n\n{calibration_table(document['rows'], document['rank_correlations'])}"


def quantize_accuracy_table(rows: list[Row]) -> str:
    """What rounded weights cost: AP, and how far keypoints move."""
    lines = [
        [
            row["setting"],
            # Settings that the library does not have are computed by a float32 model with rounded weights.
            "" if row is not rows[0] and row["bytes"] == rows[0]["bytes"] else f"{row['bytes'] / 1e6:.0f} MB",
            f"{row['AP']:.3f}",
            f"{row['AP'] - rows[0]['AP']:+.3f}",
            f"{row['AR']:.3f}",
            f"{100 * row['moved']['median']:.2f} %",
            f"{100 * row['moved']['high']:.2f} %",
        ]
        for row in rows
    ]
    header = ["weights of the blocks", "parameters", "AP", "difference", "AR", "keypoints move by", "95 % by less than"]
    return markdown(header, lines, numbers=6)


def quantize_memory_table(rows: list[Row]) -> str:
    """What quantized weights save: bytes of the parameters, peak memory of a process."""
    sizes = ("start_bytes", "parameter_bytes", "load_bytes", "run_bytes")
    lines = [[row["preset"], row["setting"], *(f"{row[name] / 1e9:.2f} GB" for name in sizes)] for row in rows]
    header = ["model", "weights of the blocks", "JAX alone", "parameters", "peak, loaded", "peak, run"]
    return markdown(header, lines, numbers=4)


def quantize_time_table(rows: list[Row]) -> str:
    """The time of a batch, relative to parameters in float32."""
    lines = [[row["preset"], row["dtype"], row["setting"], str(row["crops"]), f"{row['ratio']:.1f}"] for row in rows]
    return markdown(["model", "computed in", "weights of the blocks", "crops", "relative time"], lines, numbers=2)


def quantize_products_table(rows: list[Row]) -> str:
    """Products of int8 tokens with int8 weights, beside those of floating-point numbers."""
    cells: dict[str, list[str]] = {}
    for row in rows:
        line = cells.setdefault(row["layer"], [f"{row['layer']}, {row['inputs']} to {row['outputs']}"])
        line.append(f"{row['ratio']:.2f}")
    return markdown(["layer", "float32", "bfloat16", "int8 alone", "W8A8"], cells.values(), numbers=4)


def quantize_architectures_table(rows: list[Row]) -> str:
    """How far heatmaps move, a line for each architecture."""
    settings = list(dict.fromkeys(row["setting"] for row in rows))
    lines: dict[str, dict[str, float]] = {}
    for row in rows:
        lines.setdefault(row["preset"], {})[row["setting"]] = row["moved"]
    cells = [[preset, *(f"{100 * moved[setting]:.1f} %" for setting in settings)] for preset, moved in lines.items()]
    return markdown(["model", *settings], cells, numbers=len(settings))


def quantize_forward_table(rows: list[Row]) -> str:
    """A whole forward pass with int8 products, beside floating point, and how far its heatmaps are."""
    lines = [
        [row["preset"], str(row["people"]), row["program"], f"{row['ms']:.0f}", f"{row['ratio']:.2f}", moved(row)]
        for row in rows
    ]
    return markdown(["model", "crops", "products", "median, ms", "relative", "heatmaps differ by"], lines, numbers=3)
