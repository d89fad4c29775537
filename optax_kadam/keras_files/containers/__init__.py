"""Containers turn bytes into named arrays that are not read yet: zip archives, HDF5, TensorFlow checkpoints."""
