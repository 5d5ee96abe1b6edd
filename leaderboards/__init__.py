"""Records of runs, their schema, and the boards made of them."""
