"""An estimator that computes nothing, and waits until it may go on."""

import threading

import numpy as np

from vitpose_jax import ItemError, PoseEstimator, Poses
from vitpose_jax.skeletons import COCO

EMPTY = Poses.create(np.zeros((0, 17, 2)), np.zeros((0, 17)), np.zeros((0, 4)), COCO)


class Slow(PoseEstimator):
    """An estimator whose first call waits until it may go on; results are the images themselves."""

    def __init__(self):
        self.groups, self.may_go_on, self.started = [], threading.Event(), threading.Event()

    def stream(self, items, *, flip_test, decode, errors):
        items = list(items)
        self.groups.append((len(items), flip_test))
        self.started.set()
        assert self.may_go_on.wait(20)
        for index, (image, _, _) in enumerate(items):
            if image == "broken":
                error = ItemError(index, "broken")
                error.__cause__ = ValueError("broken")
                yield error
            elif image == "fatal":
                raise MemoryError("no memory")
            else:
                yield image if isinstance(image, str) else EMPTY
