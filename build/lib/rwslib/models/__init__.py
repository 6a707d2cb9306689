"""One file a model: a generative model p and an inference network q."""
