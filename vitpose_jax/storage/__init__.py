"""Bytes on disk: safetensors and JSON, parameters by name, int8 weights, atomic writes."""
