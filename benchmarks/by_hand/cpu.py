"""Let megatron-core and Megatron-Bridge be imported and used without a GPU: import this before them.

What they import and no machine without CUDA has (Transformer Engine, kernels of state space models, trackers)
is stood in for: Transformer Engine's layers by modules with its parameters, names and shapes, everything else
by names that do nothing. ``torch.cuda`` answers with the CPU. How models are built, sharded, saved, loaded
and renamed is their own code; only what would compute is not there. Tried with megatron-bridge 0.6.2 and
megatron-core 0.19.2.
"""

from __future__ import annotations

import contextlib
import importlib.abc
import importlib.machinery
import importlib.metadata
import sys
import types
import typing
from collections.abc import Callable
from typing import Any

import torch
import typing_extensions
from torch import nn
from torch.overrides import TorchFunctionMode

_VERSIONS = {
    "transformer_engine": "2.14.0", "mamba_ssm": "2.2.6", "causal_conv1d": "1.5.3", "modelopt": "0.44.0",
}  # fmt: skip
_ABSENT = {
    *_VERSIONS, "transformer_engine_torch", "fla", "flashinfer_cubin", "wandb", "fast_hadamard_transform",
    "timm", "open_clip", "qwen_vl_utils", "datasets", "mlflow", "comet_ml", "megatron_energon",
    "mistral_common", "av", "webdataset",
}  # fmt: skip
_PACKAGES = {
    "transformer_engine": ("pytorch", "common"),
    "transformer_engine.common": ("recipe",),
    "transformer_engine.pytorch": ("ops", "distributed", "fp8", "attention", "cpp_extensions"),
    "modelopt": ("torch",),
    "modelopt.torch": ("opt", "distill", "quantization", "export", "utils"),
}
_CPU = torch.device("cpu")


def _parameter(*shape: int, dtype: torch.dtype | None, cut: int | None = None) -> nn.Parameter:
    made: Any = nn.Parameter(torch.empty(*shape, dtype=dtype or torch.get_default_dtype()))
    made.tensor_model_parallel, made.partition_dim, made.partition_stride = cut is not None, cut or 0, 1
    return typing.cast(nn.Parameter, made)


class _Layer(nn.Module):
    """What megatron-core asks of each of Transformer Engine's layers."""

    def set_tensor_parallel_group(self, group: Any) -> None:
        self.tp_group = group

    def init_fp8_metadata(self, num_gemms: int = 1) -> None:
        pass

    def set_extra_state(self, state: Any) -> None:
        pass

    def get_extra_state(self) -> torch.Tensor:
        return torch.empty(0, dtype=torch.uint8)  # as TE 2 saves it without FP8


class Linear(_Layer):
    """Hold a linear layer's weight, this rank's part of it."""

    def __init__(
        self, in_features: int, out_features: int, *, parallel_mode: str | None = None, tp_size: int = 1,
        bias: bool = True, params_dtype: torch.dtype | None = None, return_bias: bool = False, **_: Any,
    ) -> None:  # fmt: skip
        super().__init__()
        rows = out_features // (tp_size if parallel_mode == "column" else 1)
        columns = in_features // (tp_size if parallel_mode == "row" else 1)
        cut = {"column": 0, "row": 1}.get(parallel_mode or "")
        self.parallel_mode, self.tp_size, self.use_bias, self.return_bias = (
            parallel_mode, tp_size, bias, return_bias,
        )  # fmt: skip
        self.weight = _parameter(rows, columns, dtype=params_dtype, cut=cut)
        self.bias = _parameter(rows, dtype=params_dtype, cut=cut or None) if bias else None


class LayerNormLinear(Linear):
    """Hold a linear layer's weight and that of the norm before it."""

    def __init__(
        self, in_features: int, out_features: int, *, normalization: str = "LayerNorm", **more: Any
    ) -> None:
        super().__init__(in_features, out_features, **more)
        dtype = more.get("params_dtype")
        self.layer_norm_weight = _parameter(in_features, dtype=dtype)
        self.layer_norm_bias = _parameter(in_features, dtype=dtype) if normalization == "LayerNorm" else None


class GroupedLinear(_Layer):
    """Hold the weights of a rank's experts."""

    def __init__(
        self, num_gemms: int, in_features: int, out_features: int, *, parallel_mode: str | None = None,
        tp_size: int = 1, bias: bool = True, params_dtype: torch.dtype | None = None, **_: Any,
    ) -> None:  # fmt: skip
        super().__init__()
        rows = out_features // (tp_size if parallel_mode == "column" else 1)
        columns = in_features // (tp_size if parallel_mode == "row" else 1)
        self.num_gemms, self.use_bias = num_gemms, bias
        self.fp8 = self.fp8_calibration = False
        self.fp8_meta = {"recipe": None, "fp8_checkpoint": False}
        for i in range(num_gemms):
            setattr(self, f"weight{i}", _parameter(rows, columns, dtype=params_dtype))
            if bias:
                setattr(self, f"bias{i}", _parameter(rows, dtype=params_dtype))


class RMSNorm(_Layer):
    """Hold a norm's weight."""

    def __init__(
        self, normalized_shape: Any, eps: float = 1e-5, params_dtype: torch.dtype | None = None, **_: Any
    ) -> None:
        super().__init__()
        shape = (normalized_shape,) if isinstance(normalized_shape, int) else tuple(normalized_shape)
        self.weight = _parameter(*shape, dtype=params_dtype)


class LayerNorm(RMSNorm):
    """Hold a norm's weight and bias."""

    def __init__(self, normalized_shape: Any, *rest: Any, **more: Any) -> None:
        super().__init__(normalized_shape, *rest, **more)
        self.bias = _parameter(*self.weight.shape, dtype=more.get("params_dtype"))


class DotProductAttention(nn.Module):
    """Hold nothing: the attention itself has no weights."""

    def __init__(self, *_: Any, **__: Any) -> None:
        super().__init__()


class CudaRNGStatesTracker:
    """Keep no random states."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.states_: dict[str, Any] = {}
        self.seeds_: set[int] = set()

    def get_states(self) -> dict[str, Any]:
        return dict(self.states_)

    def set_states(self, states: dict[str, Any]) -> None:
        self.states_ = states

    def add(self, name: str, seed: int) -> None:
        self.states_[name] = seed

    def is_initialized(self) -> bool:
        return True

    def fork(self, name: str = "") -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()


_HERE: dict[str, dict[str, Any]] = {
    "transformer_engine.pytorch": {
        layer.__name__: layer
        for layer in (Linear, LayerNormLinear, GroupedLinear, RMSNorm, LayerNorm, DotProductAttention)
    },
    "transformer_engine.pytorch.cpu_offload": {
        "get_cpu_offload_context": lambda *_, **__: (contextlib.nullcontext(), None)
    },
    "transformer_engine.pytorch.distributed": {"CudaRNGStatesTracker": CudaRNGStatesTracker},
}


class _Anything(type):
    """A class whose attributes are all there."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _anything(name)


class _Function:
    """A function that does nothing; as a decorator it returns what it decorates."""

    def __init__(self, name: str) -> None:
        self.__name__ = self.__qualname__ = name

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        return arguments[0] if len(arguments) == 1 and callable(arguments[0]) and not named else self

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _anything(name)


def _anything(name: str) -> Any:
    if not name.lstrip("_")[:1].isupper():
        return _Function(name)
    return _Anything(name, (nn.Module,), {"__init__": lambda self, *_, **__: nn.Module.__init__(self)})


class _Module(types.ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name == "__version__":
            return _VERSIONS.get(self.__name__.partition(".")[0], "1.0.0")
        if name.startswith("__"):
            raise AttributeError(name)
        if name in (known := _HERE.get(self.__name__, {})):
            return known[name]
        full = f"{self.__name__}.{name}"
        if full in sys.modules or name in _PACKAGES.get(self.__name__, ()):
            return importlib.import_module(full)
        setattr(self, name, _anything(name))
        return self.__dict__[name]


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name: str, *_: Any) -> importlib.machinery.ModuleSpec | None:
        if name.partition(".")[0] in _ABSENT or f"{name}.".startswith("megatron.energon."):
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        module = _Module(spec.name)
        module.__path__, module.__file__ = [], "a stand-in"
        return module

    def exec_module(self, module: types.ModuleType) -> None:
        pass


class _OnCpu(TorchFunctionMode):
    """Put on the CPU what is asked for on a GPU."""

    def __torch_function__(
        self, function: Callable[..., Any], _: Any, arguments: Any = (), named: Any = None
    ) -> Any:
        named = dict(named or {})
        if "device" in named:
            named["device"] = self._here(named["device"])
        if getattr(function, "__name__", "") == "to" and len(arguments) > 1:
            arguments = (arguments[0], self._here(arguments[1]), *arguments[2:])
        return function(*arguments, **named)

    @staticmethod
    def _here(device: Any) -> Any:
        on_gpu = isinstance(device, (str, torch.device)) and str(device).startswith("cuda")
        return _CPU if on_gpu else device


class _Stream:
    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __enter__(self) -> _Stream:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_: None


def _without_cuda() -> None:
    """Let ``torch.cuda`` answer with the CPU."""
    properties = types.SimpleNamespace(
        major=9, minor=0, name="cpu", total_memory=1 << 34, multi_processor_count=8
    )
    answers = {
        "current_device": _CPU, "device_count": 1, "get_device_capability": (9, 0), "get_device_name": "cpu",
        "get_device_properties": properties, "memory_allocated": 0, "max_memory_allocated": 0,
        "memory_reserved": 0, "max_memory_reserved": 0, "set_device": None, "synchronize": None,
        "empty_cache": None, "manual_seed": None, "set_rng_state": None, "_lazy_init": None,
    }  # fmt: skip
    cuda: Any = torch.cuda
    for name, answer in answers.items():
        setattr(cuda, name, lambda *_, _answer=answer, **__: _answer)
    cuda.Stream = _Stream
    cuda.current_stream = cuda.stream = lambda *_, **__: _Stream()
    cuda.get_rng_state = cuda.random.get_rng_state = lambda *_, **__: torch.get_rng_state()
    cuda.random.set_rng_state = cuda.set_rng_state
    cuda.default_generators = ()
    for owner in (torch.Tensor, nn.Module):
        owner.cuda = lambda self, *_, **__: self  # type: ignore[attr-defined]
    _OnCpu().__enter__()


def _version(name: str, _asked: Callable[[str], str] = importlib.metadata.version) -> str:
    return _VERSIONS.get(name.replace("-", "_")) or _asked(name)


if not hasattr(typing, "override"):  # Python 3.11
    typing.override = typing_extensions.override  # type: ignore[attr-defined]
sys.meta_path.insert(0, _Finder())
importlib.metadata.version = _version
_without_cuda()
