"""Training of the networks that predict a displacement between two volumes."""
