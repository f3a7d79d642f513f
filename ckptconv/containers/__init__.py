"""Read and lay out the containers that hold tensors; one module or package each, none knows a model."""
