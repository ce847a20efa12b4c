"""Which units matter: criteria from weights, activations and derivatives, and the scores they give."""
