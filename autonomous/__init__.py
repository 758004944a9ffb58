"""The mind: what to learn, how to judge it, when to stop. Runs in one process, without Ray.

config       every setting of the parts below
ingest       documents in, passages out: cleaned, screened, cut
lessons      passages in, learning items and held-out questions out
online       learning items in, a trained adapter out (OnlineLearningModule)
runs         what a learning run reports
suite        the texts of anchor, control and safety
panel        who is asked: candidate, parent, original
evaluation   an adapter in, an evaluation report out (SelfEvaluationSystem); its texts lie in suites/
versions/    the life of a version: states, gates, ledger, audit, the rollback drill
safety/      the stop latch, the screen, the monitor
curriculum   which passages are learned next, what is replayed, what is asked
ports        what the agent works with, as protocols
loop         the learning cycles over all of them (LearningLoop)
schedule     when something is due, in UTC (Schedule)
jobs         which work runs by itself, and what becomes of what was missed (SchedulesConfig)
schedule_book, schedule_rows  which slots are settled, what waits, what ran: in SQLite
retraining   what is due is begun once, one run at a time (RetrainingScheduler)
learn_until_done  a run of learning cycles in turn
"""
