"""Two models compared on the same images, proposal by proposal."""
