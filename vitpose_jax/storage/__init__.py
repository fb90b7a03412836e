"""Bytes on disk: tensors, parameters, int8, files written whole."""
