"""Layouts turn named arrays into weights and slots: each generation of Keras arranged them in its own ways."""
