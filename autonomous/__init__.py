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
data_report  a batch and what the memory holds in, what was measured of it out (BatchInspector)
data_gate    which passages of a batch go on to training, and which wait for a person (G0)
holds        what waits, with its reasons, until a person releases it (HoldRegister)
budget       how much may be learned and done in a day and a month: reserved before, settled after
ports        what the agent works with, as protocols; local_memory: one of them over stores of this process
loop         the learning cycles over all of them (LearningLoop)
"""
