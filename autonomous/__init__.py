"""The mind: what to learn, how to judge it, when to stop. Runs in one process, without Ray.

config       every setting of the parts below
ingest       documents in, passages out: cleaned, screened, cut
lessons      passages in, learning items and held-out questions out
online       learning items in, a trained adapter out (OnlineLearningModule)
runs         what a learning run reports
suite        the texts of suites/: what the learner is anchored to, what versions are judged by
sentinel/    texts that only the evaluator reads; leaks: which training texts hold what judges
panel        who is asked: candidate, parent, original; asking: a panel that remembers; turns: who has the model
statistics   bootstrap, exact tests, Holm; provenance: hashes of the code and texts that judge
evaluation   an adapter in, an evaluation report out (SelfEvaluationSystem)
benchmark    all suites, in the background (benchmark_config, benchmark_report); triggers: what to learn again
report_page  a version's page; report_store: reports on disk; version_reports: those of the ledger's versions
versions/    the life of a version: states, gates, ledger, audit
safety/      the stop latch, the screen, the monitor
curriculum   which passages are learned next, what is replayed, what is asked
ports        what the agent works with, as protocols
loop         the learning cycles over all of them (LearningLoop)
"""
