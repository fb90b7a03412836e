"""RT-DETR and RT-DETRv2: the object detection network, with its pre- and post-processing."""
