"""Training the person finder: boxes instead of keypoints, in the same loop. Start reading at `config.py`."""
