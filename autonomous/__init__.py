"""The mind: what to learn, how to judge it, when to stop. Runs in one process, without Ray.

config       every setting of the parts below
ingest       documents in, passages out: cleaned, screened, cut
lessons      passages in, learning items and held-out questions out
online       learning items in, a trained adapter out (OnlineLearningModule)
runs         what a learning run reports
suite        the texts of anchor, control and safety
panel        who is asked: candidate, parent, original
evaluation   an adapter in, an evaluation report out (SelfEvaluationSystem); its texts lie in suites/
versions/    the life of a version: states, gates, ledger, audit
safety/      the stop latch, the screen, the monitor
curriculum   which passages are learned next, what is replayed, what is asked
ports        what the agent works with, as protocols
loop         the learning cycles over all of them (LearningLoop)

requests     answered requests, masked, with the model's confidence (RequestLog); tables: feedback_tables
feedback     votes and corrections on answers (FeedbackStore)
gaps         groups of badly answered questions (GapDetector)
labelling    which answers people should look at next
tasks        gaps as learning tasks, until they are answered (LearningTasks)
pipeline     from feedback and gaps to data, a run, a version (TrainingPipelineIntegration); pipeline_memory: its stores
feedback_desk  what the HTTP surface asks of all that (FeedbackDesk); feedback_config: its settings
"""
