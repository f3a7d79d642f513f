"""Count what is read: a web server that takes note of every request, and a model large enough to be cut."""

from __future__ import annotations

import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

HIDDEN, INNER, LAYERS, WORDS, HEADS, GROUPS = 768, 2048, 4, 2048, 16, 8


def make_model(folder: Path) -> Path:
    """Write a Llama of 65 MB in two files, with random weights."""
    random, wide = np.random.default_rng(0), HIDDEN // HEADS * GROUPS
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens": (WORDS, HIDDEN)}
    for i in range(LAYERS):
        layer = {
            "input_layernorm": (HIDDEN,),
            "self_attn.q_proj": (HIDDEN, HIDDEN),
            "self_attn.k_proj": (wide, HIDDEN),
            "self_attn.v_proj": (wide, HIDDEN),
            "self_attn.o_proj": (HIDDEN, HIDDEN),
            "post_attention_layernorm": (HIDDEN,),
            "mlp.gate_proj": (INNER, HIDDEN),
            "mlp.up_proj": (INNER, HIDDEN),
            "mlp.down_proj": (HIDDEN, INNER),
        }
        shapes |= {f"model.layers.{i}.{n}": s for n, s in layer.items()}
    shapes |= {"model.norm": (HIDDEN,), "lm_head": (WORDS, HIDDEN)}
    tensors = {
        f"{n}.weight": random.standard_normal(s, np.float32).astype(np.float16) for n, s in shapes.items()
    }
    folder.mkdir(parents=True)
    names, where = list(tensors), {}
    for i, part in enumerate((names[: len(names) // 2], names[len(names) // 2 :]), 1):
        file = f"model-{i:05d}-of-00002.safetensors"
        save_file({n: tensors[n] for n in part}, folder / file, {"format": "pt"})
        where |= dict.fromkeys(part, file)
    index = {"metadata": {"total_size": sum(t.nbytes for t in tensors.values())}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": HIDDEN,
        "intermediate_size": INNER,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": GROUPS,
        "vocab_size": WORDS,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": False,
        "hidden_act": "silu",
        "torch_dtype": "float16",
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder


class CountingServer:
    """Serve a folder by plain HTTP.

    Attributes:
        reads: The file, first byte and end of every answer to a request for a file.
        url: The folder's address.
    """

    def __init__(self, root: Path) -> None:
        self.reads: list[tuple[str, int, int]] = []
        reads = self.reads

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_HEAD(self) -> None:
                self._answer(body=False)

            def do_GET(self) -> None:
                self._answer(body=True)

            def _answer(self, *, body: bool) -> None:
                path, part = root / self.path.strip("/"), None
                if not path.exists():
                    self.send_error(404)
                    return
                if path.is_dir():
                    names = [p.name + "/" * p.is_dir() for p in sorted(path.iterdir())]
                    data = "".join(f'<a href="{self.path.rstrip("/")}/{n}">{n}</a>\n' for n in names).encode()
                else:
                    lo, hi = 0, path.stat().st_size
                    if part := re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", "")):
                        lo, hi = int(part[1]), min(int(part[2]) + 1, hi)
                    data = b""
                    with open(path, "rb") as file:
                        file.seek(lo)
                        data = file.read(hi - lo)
                    if body:
                        reads.append((path.name, lo, hi))
                self.send_response(200 if part is None else 206)
                self.send_header("Content-Type", "text/html" if path.is_dir() else "application/octet-stream")
                self.send_header("Accept-Ranges", "bytes")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                if body:
                    self.wfile.write(data)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    @property
    def nbytes(self) -> int:
        """Bytes of files that were asked for."""
        return sum(end - start for _, start, end in self.reads)

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def weights(folder: Path) -> int:
    """Return the bytes of the files below a folder that hold weights."""
    kinds = (".safetensors", ".pt", ".distcp", ".ckpt", ".bin")
    return sum(p.stat().st_size for p in folder.rglob("*") if p.suffix in kinds)
