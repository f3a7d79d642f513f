"""Read and lay out what ``torch.save`` writes; no pickle is ever executed."""
