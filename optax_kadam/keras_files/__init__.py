"""Keras's configuration and files: read, restored, written."""
