"""Read checkpoints: one module per producer."""
