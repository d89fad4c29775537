"""Keras's configuration of an optimizer is read into a transformation, and written from `kadam`'s arguments."""
