"""Read and lay out the containers that hold tensors; one module per container, none knows a model."""
