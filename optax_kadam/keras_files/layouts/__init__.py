"""From named arrays to weights and slots: the layouts in which the generations of Keras wrote them."""
