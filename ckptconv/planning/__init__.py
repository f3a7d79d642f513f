"""Turn a checkpoint and a request into a plan; no branch by target."""
