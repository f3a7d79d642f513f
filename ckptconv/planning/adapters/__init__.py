"""Merge LoRA adapters on the way, or write them alone."""
