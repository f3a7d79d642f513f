"""Print what vLLM answers, greedily: ``python vllm_serve.py MODEL DTYPE PROMPTS``.

Prompts are lists of tokens, as JSON; so is the last line that comes out: tokens and their log-probabilities.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

os.environ.update(
    HF_HUB_OFFLINE="1",
    OMP_NUM_THREADS="1",
    VLLM_CPU_KVCACHE_SPACE="1",
    VLLM_CPU_OMP_THREADS_BIND="nobind",
    VLLM_ENABLE_V1_MULTIPROCESSING="0",
    VLLM_LOGGING_LEVEL="WARNING",
    VLLM_NO_USAGE_STATS="1",
)

from vllm import LLM, SamplingParams
from vllm.model_executor.layers.fused_moe.router.cpu_router import CPURouter

STEPS = 12


def route_by_one_group() -> None:
    """Let experts be chosen by sigmoid or with a bias.

    The router for CPUs (0.32) does so for groups of experts only, and leaves a bias out where there are none;
    one group of all experts is the same.
    """
    first = CPURouter.__init__

    def made(self: CPURouter, *args: Any, **options: Any) -> None:
        first(self, *args, **options)
        beside = self.e_score_correction_bias is not None or self.scoring_func == "sigmoid"
        if beside and self.custom_routing_function is None and not self.use_grouped_topk:
            self.use_grouped_topk, self.num_expert_group, self.topk_group = True, 1, 1

    CPURouter.__init__ = made


def main(model: str, dtype: str, asked: str) -> None:
    """Serve a model and print its answer."""
    route_by_one_group()
    llm = LLM(
        model,
        dtype=dtype,
        enforce_eager=True,
        load_format="auto",
        max_model_len=64,
        max_num_seqs=4,
        skip_tokenizer_init=True,
        enable_prefix_caching=False,
    )
    how = SamplingParams(temperature=0, max_tokens=STEPS, logprobs=0, ignore_eos=True, detokenize=False)
    prompts = [{"prompt_token_ids": tokens} for tokens in json.loads(asked)]
    answers = [out.outputs[0] for out in llm.generate(prompts, how, use_tqdm=False)]
    tokens = [list(a.token_ids) for a in answers]
    sure = [[s[t].logprob for t, s in zip(a.token_ids, a.logprobs, strict=True)] for a in answers]
    print(json.dumps({"tokens": tokens, "logprobs": sure}))


if __name__ == "__main__":
    main(*sys.argv[1:])
