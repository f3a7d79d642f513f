"""Turn training arguments into facts about a model, and facts into arguments."""
