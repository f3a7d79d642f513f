#!/usr/bin/env python
"""Load a converted model with transformers and let it write a few tokens.

    python examples/generate.py MODEL_DIR [PROMPT]

The last line printed is the path of the model.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

_PROMPT = "What does a checkpoint hold?"
_NEW_TOKENS = 24


def main(folder: str, prompt: str = _PROMPT) -> None:
    """Print the prompt, what the model makes of it, and where the model lies."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    inputs = tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt}],
        add_generation_prompt=True,
        return_dict=True,
        return_tensors="pt",
    )
    tokens = model.generate(**inputs, max_new_tokens=_NEW_TOKENS, do_sample=False)
    answer = tokenizer.decode(tokens[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    print(f"{model.num_parameters():,} parameters loaded")
    print(f"> {prompt}\n{answer.strip()}")
    print(Path(folder).resolve())


if __name__ == "__main__":
    if not 2 <= len(sys.argv) <= 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
