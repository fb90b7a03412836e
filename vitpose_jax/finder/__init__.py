"""The person finder: a small convolutional detector that comes with the package. Start reading at `modeling.py`."""
