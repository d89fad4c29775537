"""Is it the same training? Two are compared, and the first steps of Keras's optimizer are recorded."""
