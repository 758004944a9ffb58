"""Pre-training: packed tokens in, a trained and servable model out, on one process or on many."""
