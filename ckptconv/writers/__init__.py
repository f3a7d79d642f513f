"""Decide names, files and layout of what is written: one module per consumer."""
