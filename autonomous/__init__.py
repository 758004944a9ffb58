"""The mind: what to learn, how to judge it, when to stop. Runs in one process, without Ray.

config       every setting of the parts below
ingest       documents in, passages out: cleaned, screened, cut
lessons      passages in, learning items and held-out questions out
online       learning items in, a trained adapter out (OnlineLearningModule)
runs         what a learning run reports
suite        the texts of anchor, control and safety
panel        who is asked: candidate, parent, original
evaluation   an adapter in, an evaluation report out (SelfEvaluationSystem); its texts lie in suites/
people       who acts: one name per person, and the names of the program itself
consent      two people must agree: the pure decision
signing      the system's signing key
versions/    the life of a version: states, gates, ledger, audit, approvals, explanations, forensics
safety/      the stop latch, the screen, the monitor, the request for a reset
curriculum   which passages are learned next, what is replayed, what is asked
ports        what the agent works with, as protocols
loop         the learning cycles over all of them (LearningLoop)
oversight    what people decide and ask about versions, beside the loop (Oversight)
"""
