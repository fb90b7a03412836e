"""Where the pixels of an image come from besides files: arrays and tensors, and URLs."""
