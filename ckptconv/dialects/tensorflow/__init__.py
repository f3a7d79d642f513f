"""Name the variables of transformers' TensorFlow models, and of TensorFlow 1, as its torch models do."""
