"""Pre-training: packed tokens in, a trained and servable model out, on one process or on many.

config       PretrainingConfig: one run, from a TOML file
engine       PretrainingEngine: one process's part of a run; loop: its steps, one function; evaluation: held-out loss, samples
anomaly      what a spike, a NaN or an overflow leads to; schedule: the rate of each step
parallel     DistributedTrainer4D: plan, groups, engine, shares of a batch; precision: MixedPrecisionManager
step         TrainingEngine: what the loop asks of the two engines
native       NativeEngine: FSDP2, pipeline schedules, the model's own tensor, context and expert parallelism
deepspeed_engine   DeepSpeedEngine: DeepSpeed's ZeRO and pipeline on the same model (passes, zero, moe: its parts)
mesh         RankMesh: the process groups of a plan; stage: the part of a model that a process trains, and its objective
initialise   first weights that do not depend on the plan; random_state: what a checkpoint keeps of generators
optimizer    AdamW and Muon on parts of parameters
checkpoint   CheckpointManager: background saves that any other plan loads; pieces: what an engine tells it; export: a folder
bigram       the baseline of a run; run_writer, run_log, chart, report: what a run wrote, as a page; flops: what MFU divides by
"""
