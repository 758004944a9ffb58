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
engine_weights       versions of full weights: an engine for each; engine_process: one in a process of its own
lora_ops             the fix of vLLM's CPU operations for batches of base and adapter rows

parts                what the HTTP surface needs from the rest; ray_parts gives it over Ray, with ray_* for each noun of it,
                     ray_calls for calls of actors and ray_engine for the engine's replicas
feedback_parts       the same of feedback; ray_feedback gives it, recording and request_queue keep answers behind it
app, chat, answers   the routes; schemas, schemas_openai what goes over the wire; errors, docs_page, stream beside them
memory_routes, source_routes   the routes of memory and sources
rag, router          passages into the prompt; names to versions, and retries
tool_routes          the tools and answers that use them; tool_parts what they need, ray_tools gives it over Ray
deployments          the Ray Serve application

This package imports nothing by itself: a backend's import costs seconds.
"""
