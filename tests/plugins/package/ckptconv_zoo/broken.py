"""Fail to load."""

raise RuntimeError("this plug-in is broken")
