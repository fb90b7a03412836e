"""How one image's poses look in other formats; the methods of `Poses` write them."""
