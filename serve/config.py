"""Configuration of serving: the engine, the HTTP surface and retrieval at answer time."""

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from train.dtype import Dtype


class EngineConfig(BaseModel):
    """One engine replica. The same fields drive every backend (`serve.engine.KINDS`)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["vllm", "vllm-async", "hf", "echo"] = "vllm"
    """vllm: in one process with its replica; vllm-async: own processes, several GPUs; hf: transformers' generate;
    echo: repeats the prompt, for tests."""
    num_replicas: int = Field(1, ge=1)
    """Engine replicas. Two keep answering while one restarts."""
    num_gpus_per_replica: float = Field(0, ge=0)
    """GPUs that Ray reserves for a replica; 0 runs on the CPU."""
    tensor_parallel: int = Field(1, ge=1)
    """GPUs that share one engine's weights (vllm-async)."""
    dtype: Dtype = "auto"
    """Precision of the weights; auto: bfloat16, or float32 on a CPU that is slow in it (train/dtype.py)."""
    max_model_len: int = Field(2048, gt=0)
    """Most tokens of prompt and answer together."""
    max_num_seqs: int = Field(16, gt=0)
    """Most sequences of one engine step."""
    kv_cache_bytes: int = Field(256 << 20, gt=0)
    """Key-value cache, bytes. Always explicit: otherwise vLLM runs a memory check that fails on shared machines."""
    num_threads: int = Field(1, gt=0)
    """Compute threads (OMP). Two only on a machine that does nothing but serve."""
    max_lora_rank: Literal[1, 8, 16, 32, 64, 128, 256, 320, 512] = 8
    """Largest adapter rank."""
    max_loras: int = Field(3, ge=0)
    """Adapters active in one batch: V1, V2 and V3. 0: none, which vLLM needs for a base model with experts on a CPU."""
    max_cpu_loras: int = Field(8, ge=1)
    """Adapters kept in memory: the live ones and their warm predecessors."""
    max_weights: int = Field(0, ge=0)
    """Versions of full weights kept in memory beside the original (agent.learning.target = "weights"), each as an engine of
    its own: 3 are V1, V2 and V3. 0: none."""

    @model_validator(mode="after")
    def _weights_have_an_engine(self) -> Self:
        if self.max_weights and self.kind == "vllm-async":
            raise ValueError(
                f"engine.max_weights = {self.max_weights} with kind 'vllm-async': versions of full weights are served by the "
                "kinds 'vllm', 'hf' and 'echo'"
            )
        return self

    @property
    def served_rank(self) -> int:
        """Largest rank of an adapter that this engine takes; 0 if it takes none."""
        return self.max_lora_rank if self.max_loras else 0


class RAGConfig(BaseModel):
    """Retrieval at answer time."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    num_passages: int = Field(3, ge=1)
    """Most passages put before a question."""
    min_cosine: float = Field(0.35, ge=-1, le=1)
    """Below this similarity a passage is left out; with none left the model answers from its weights."""
    max_context_tokens: int = Field(600, gt=0)
    """Token budget of all passages, in the serving model's tokens."""


class HttpConfig(BaseModel):
    """Where the HTTP surface listens."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    host: str = "127.0.0.1"
    """Address to bind. Anything but loopback needs a proxy with authentication in front (docs/security.md)."""
    port: int = Field(8707, ge=0, le=65535)
    """0 takes a free port; `autonomous status` prints it."""
    request_timeout_s: float = Field(300.0, gt=0)
    """A request is given up after this long, retries included."""
    max_body_bytes: int = Field(64 << 20, gt=0)
    """Larger request bodies are refused with 413."""
    default_max_tokens: int = Field(128, gt=0)
    """Answer length when the request names none."""
