"""float16 and int8 graphs, accepted by their recall."""
