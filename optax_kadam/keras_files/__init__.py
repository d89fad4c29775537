"""Keras's files: read as a training, restored into a tree of parameters and a state, and written back."""
