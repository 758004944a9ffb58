"""Adapting a frozen base model.

base    the base model in memory: weights and tokenizer, and the hash that proves it untouched
trainer one optimizer step of an adapter or of all weights: cross-entropy of the items, KL to the base, terms of methods
weights full weights of a version: written, checked, loaded
scoring log-likelihoods, log-probabilities and greedy answers
reference  how an adapter on disk is named
lora    low-rank adapters: the layer itself, and attaching, saving and hashing them in PEFT's format
"""

from train.adapt.base import BaseModelInMemory, load_base_model, pick_device, weights_sha256
from train.adapt.lora import (
    AdapterError,
    LoRAConfig,
    LoRALayer,
    adapter_sha256,
    attach_adapter,
    attach_saved,
    detach_adapter,
    save_adapter,
)
from train.adapt.trainer import AnchorReferences, NonFiniteLoss, OnlineTrainer, StepMetrics

__all__ = [
    "AdapterError",
    "AnchorReferences",
    "BaseModelInMemory",
    "LoRAConfig",
    "LoRALayer",
    "NonFiniteLoss",
    "OnlineTrainer",
    "StepMetrics",
    "adapter_sha256",
    "attach_adapter",
    "attach_saved",
    "detach_adapter",
    "load_base_model",
    "pick_device",
    "save_adapter",
    "weights_sha256",
]
