"""Which leaf of a tree is which variable of Keras: names, shapes, and the ways in which a layer is held."""
