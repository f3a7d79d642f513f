"""Carry out plans: fill files tile by tile on threads, journal what is whole, name it at the end."""
