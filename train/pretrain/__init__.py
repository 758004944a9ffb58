"""Pre-training: packed tokens in, a trained and servable model out, on one process or on many.

native       NativeEngine: FSDP2, pipeline schedules, the model's own tensor, context and expert parallelism
mesh         RankMesh: the process groups of a plan; stage: the part of a model that a process trains, and its objective
initialise   first weights that do not depend on the plan
optimizer    AdamW and Muon on parts of parameters; schedule: the rate of each step
checkpoint   CheckpointManager: background saves that any other plan loads; pieces: what an engine tells it
bigram       the baseline of a run; run_log, chart and report: what a run wrote, as a page
"""
