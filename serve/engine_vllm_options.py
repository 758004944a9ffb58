"""What both vLLM backends share: the environment, the engine's options, and requests in vLLM's terms.

vLLM is imported inside the functions: the environment must be set before, and its import takes seconds.
"""

import os
from pathlib import Path
from typing import Any

from serve.config import EngineConfig
from serve.engine import AdapterRef, EngineDeadError, GenerateChunk, GenerateRequest, ModelFolderError
from serve.engine_adapters import BaseShapes
from serve.engine_text import forbid_downloads
from train.dtype import pick_dtype
from train.model.embedded import ModelFolderProblem, check_model_folder, read_weight_shapes


def prepare_environment(config: EngineConfig) -> bool:
    """Set what vLLM reads from the environment, then import its platform. Returns whether it runs on a CPU.

    Multiprocessing off: the engine computes in this process. "nobind" leaves threads unbound: bound ones of two engines
    share a core. Only errors are logged unless VLLM_LOGGING_LEVEL is set: the CPU build warns some ten times per start.
    """
    forbid_downloads()
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ["VLLM_NO_USAGE_STATS"] = "1"
    os.environ["OMP_NUM_THREADS"] = str(config.num_threads)
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    from vllm.platforms import current_platform

    is_cpu: bool = current_platform.is_cpu()
    if is_cpu:
        os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"  # read when the engine starts
    return is_cpu


def prepare_cpu(*, num_threads: int) -> None:
    """Make this process ready to compute on the CPU: two fixes, eager mode, the number of threads.

    Must run in the thread that computes: OpenMP counts threads per calling thread.
    """
    import torch

    from serve.lora_ops import fix_mixed_batches

    fix_mixed_batches()
    fix_native_library()
    # vLLM compiles a helper of one line at the first log-probability asked for: 18 s
    torch.compiler.set_stance("force_eager")
    if torch.get_num_threads() != num_threads:
        torch.set_num_threads(num_threads)


def fix_native_library() -> None:
    """Let llvmlite's handle of its C library say that it has no `__dict__`; idempotent.

    vLLM 0.32 looks for its kernels in the `__dict__` of every attribute of every module. The handle, which is there once numba
    is imported, answers to any name with a function of that name, and the engine does not start.
    """
    from llvmlite.binding import ffi

    library = type(ffi.lib)
    answer = library.__getattr__
    if answer.__name__ == "answer_but_for_special_names":
        return

    def answer_but_for_special_names(self: Any, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return answer(self, name)

    library.__getattr__ = answer_but_for_special_names


class CpuWorkerExtension:
    """Mixed into vLLM's worker class in its own process: `collective_rpc("prepare_cpu_worker")` reaches the method."""

    def prepare_cpu_worker(self, num_threads: int) -> None:
        prepare_cpu(num_threads=num_threads)


def read_base(model_folder: Path) -> BaseShapes:
    """Check the folder and give its weight shapes. Raises ModelFolderError. The first check hashes all weights."""
    try:
        check_model_folder(model_folder)
        return read_weight_shapes(model_folder)
    except ModelFolderProblem as error:
        raise ModelFolderError(str(error)) from error


def engine_options(config: EngineConfig, *, model_folder: Path, is_cpu: bool) -> dict[str, Any]:
    """Keyword arguments of vLLM's EngineArgs and AsyncEngineArgs.

    Raises ModelFolderError for adapters on experts on a CPU: vLLM 0.32 computes those with a GPU kernel.
    """
    adapters = {
        "enable_lora": True,
        "max_lora_rank": config.max_lora_rank,
        "max_loras": config.max_loras,
        "max_cpu_loras": max(config.max_cpu_loras, config.max_loras),
    }
    if config.max_loras and is_cpu and any(".experts." in name for name in read_weight_shapes(model_folder)):
        raise ModelFolderError(
            f"{model_folder} has experts, and engine.max_loras = {config.max_loras}: on a CPU vLLM serves experts "
            "without adapters only; set engine.max_loras = 0"
        )
    return {
        "model": str(model_folder),
        "dtype": pick_dtype(config.dtype, device_type="cpu" if is_cpu else "cuda"),
        "max_model_len": config.max_model_len,
        "max_num_seqs": config.max_num_seqs,
        "kv_cache_memory_bytes": config.kv_cache_bytes,
        "tensor_parallel_size": config.tensor_parallel,
        "enforce_eager": is_cpu,  # adapters forbid compiling on a CPU
        "generation_config": "vllm",  # the folder's own sampling defaults stay out
        "disable_log_stats": True,
        "use_tqdm_on_load": False,
        **(adapters if config.max_loras else {}),
    }


def generation_params(request: GenerateRequest, *, max_tokens: int) -> Any:
    """SamplingParams of one request. Raises ValueError for values that vLLM refuses."""
    from vllm import SamplingParams
    from vllm.exceptions import VLLMClientError
    from vllm.sampling_params import RequestOutputKind

    try:
        return SamplingParams(
            max_tokens=max_tokens,
            temperature=request.temperature,
            top_p=request.top_p,
            stop=list(request.stop),
            seed=request.seed,
            logprobs=0 if request.has_log_prob else None,  # 0: of the chosen token alone
            output_kind=RequestOutputKind.DELTA,
        )
    except VLLMClientError as error:
        raise ValueError(str(error)) from error


def scoring_params() -> Any:
    """SamplingParams that give each prompt token's log-probability; the one generated token is thrown away."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    return SamplingParams(
        max_tokens=1,
        temperature=0.0,
        prompt_logprobs=0,
        detokenize=False,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )


def tokens_prompt(token_ids: list[int]) -> Any:
    """A prompt that vLLM takes as it is."""
    from vllm.inputs.engine import tokens_input

    return tokens_input(token_ids)


def lora_request(adapter: AdapterRef) -> Any:
    """The adapter in vLLM's terms. The name carries the number: vLLM's prefix cache tells adapters apart by name."""
    from vllm.lora.request import LoRARequest

    return LoRARequest(f"{adapter.name}#{adapter.number}", adapter.number, adapter.folder)


def prompt_scores(output: Any, *, token_ids: list[int]) -> list[float]:
    """Log-probabilities, nats, of the prompt's tokens after the first, from a request with `scoring_params`."""
    return [
        float(position[token_id].logprob)
        for position, token_id in zip(output.prompt_logprobs[1:], token_ids[1:], strict=True)
    ]


def to_chunk(output: Any, *, num_prompt_tokens: int, num_output_tokens: int) -> GenerateChunk:
    """One vLLM output as a chunk. Raises EngineDeadError if vLLM gave the request up by itself."""
    piece = output.outputs[0]
    reason = piece.finish_reason
    if not output.finished:
        return GenerateChunk(text=piece.text)
    if reason not in {"stop", "length"}:
        raise EngineDeadError(f"vLLM ended request {output.request_id} with {reason!r}: send it again")
    return GenerateChunk(piece.text, reason, num_prompt_tokens, num_output_tokens, piece.cumulative_logprob)
