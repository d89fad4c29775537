"""Tables of rows: gradients of a few of them, and steps that cost only those."""
