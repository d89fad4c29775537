"""The stages of the chain, one a file; no stage imports another."""
