"""Read and lay out torch's distributed checkpoints."""
