"""A plug-in of each kind, as a stranger would write them."""
