"""Write HTML pages of what was inspected, compared or verified."""
