"""Find and write what makes weights a model: config.json, generation config, tokenizer files."""
