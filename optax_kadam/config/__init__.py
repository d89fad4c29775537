"""Keras's configuration of an optimizer, read into a transformation and written from `kadam`'s arguments."""
