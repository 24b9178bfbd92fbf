"""Harbor: the embedded model in which truth, doubt and tone can be steered and read, and the code that made it."""
