"""RT-DETR and RT-DETRv2: the network that finds people, and what stands before and after it."""
