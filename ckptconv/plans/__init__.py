"""Hold the nouns: a checkpoint as a reader found it, a request, and the plan made of both."""
