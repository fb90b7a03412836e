"""Many images through few compiled programs."""
