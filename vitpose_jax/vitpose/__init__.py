"""ViTPose and ViTPose++: the pose network."""
