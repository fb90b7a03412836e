"""A page in the browser and an HTTP interface, both on the same estimators.

    batcher.py   requests of many threads, put together into calls of the estimator
    overlays.py  heatmaps and attention of the people in an image
    models.py    estimators by the names that visitors see
    api.py       POST an image, get poses as JSON
    page.py      the page: images, the camera, drawings, tables
    video.py     its videos
    inputs.py    what it takes: files that a visitor sends
    files.py     its result files
    limits.py    what a visitor may send
    server.py    both in one server, which `vitpose-jax web` starts

The extra `web` has what they need: `pip install "vitpose-jax[web]"`.
"""

WEB_EXTRA = 'the page needs the package gradio: pip install "vitpose-jax[web]"'
