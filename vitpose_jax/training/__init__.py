"""Training: targets, losses, augmentation, optimisation, data and the loop."""
