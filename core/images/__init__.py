"""Image files, for training and runtime alike: recognising, listing, checking and decoding them."""
