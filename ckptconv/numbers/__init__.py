"""Change values: rounding between element types."""
