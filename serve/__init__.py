"""Serving: the engines that run the model, and the HTTP surface in front of them.

config               what a person sets: engine, retrieval at answer time, HTTP
engine               the protocol of an engine, its errors, `build_engine`
engine_vllm          default backend: vLLM in one process with its replica (CPU or one GPU)
engine_vllm_async    vLLM with processes of its own: several GPUs share one model
engine_vllm_front    their caller side: prompts in, chunks out
engine_vllm_options  environment, options and requests of both vLLM backends
engine_hf            transformers' generate with PEFT adapters
engine_echo          repeats the user's words; for tests
engine_text          text to tokens, chat template, stop strings; the same for every backend
engine_adapters      the check of an adapter's folder before a backend sees it
lora_ops             the fix of vLLM's CPU operations for batches of base and adapter rows

parts                what the HTTP surface needs from the rest; ray_parts gives it over Ray actors
feedback_parts       the same of feedback; ray_feedback gives it, recording and request_queue keep answers behind it
app, chat, answers   the routes; schemas, schemas_openai what goes over the wire; errors, docs_page, stream beside them
rag, router          passages into the prompt; names to versions, and retries
deployments          the Ray Serve application

This package imports nothing by itself: a backend's import costs seconds.
"""
