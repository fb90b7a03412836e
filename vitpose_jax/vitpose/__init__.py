"""The pose network: ViTPose and ViTPose++."""
