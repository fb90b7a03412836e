"""What to say where the libraries of the extra `ray` are missing."""

ARROW_EXTRA = 'prediction on many machines needs pyarrow: pip install "vitpose-jax[ray]"'
RAY_EXTRA = (
    'many machines need the package ray: pip install "vitpose-jax[ray]"; with concurrency=0 this process works alone'
)
