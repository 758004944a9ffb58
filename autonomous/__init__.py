"""The mind: what to learn, how to judge it, when to stop. Runs in one process, without Ray.

config       every setting of the parts below
ingest       documents in, passages out: cleaned, screened, cut
lessons      passages in, learning items and held-out questions out
batching     when a batch is due by itself, and who asks for it then (BatchWatch)
policy       what holds on to earlier batches, and what a drift changes
online       learning items in, a trained adapter out (OnlineLearningModule); online_weights: full weights (WeightsLearner)
steps        what each optimizer step of a batch sees
stream_drift whether the stream has changed; learner_state: what a version's learner knows beside its weights
runs         what a learning run reports
panel        who is asked: candidate, parent, original; panel_weights: where they are models of their own
asking       a panel that remembers; turns: who has the model
suite        the texts of suites/: what the learner is anchored to, what versions are judged by
sentinel/    texts that only the evaluator reads; leaks: which training texts hold what judges
statistics   bootstrap, exact tests, Holm; provenance: hashes of the code and texts that judge; judging_code: which code
evaluation   a version in, an evaluation report out (SelfEvaluationSystem)
benchmark    all suites, in the background (benchmark_config, benchmark_report); triggers: what to learn again;
             benchmark_job: the schedule's job of it
report_page  a version's page; report_store: reports on disk; version_reports: those of the ledger's versions
sources/     the stream that is read by itself: readers, cursors, StreamReader
people       who acts: one name per person, and the names of the program itself
consent      two people must agree: the pure decision
signing      the system's signing key
versions/    the life of a version: states, gates, ledger, audit, approvals, explanations, forensics, the rollback drill
safety/      the stop latch, the screen, the monitor, the request for a reset
curriculum   which passages are learned next, what is replayed, what is asked
ports        what the agent works with, as protocols
knowledge    retrieval and tools in one interface, each call through a permit (KnowledgeIntegration)
tools/       the tools: calculator, code search, documentation, confined Python
data_report  a batch and what the memory holds in, what was measured of it out (BatchInspector)
data_gate    which passages of a batch go on to training, and which wait for a person (G0)
holds        what waits, with its reasons, until a person releases it (HoldRegister)
budget       how much may be learned and done in a day and a month: reserved before, settled after
loop         the learning cycles over all of them (LearningLoop)
rollout      from a version that passed its gates to the users, and back (canary, soak)
reconciler   what follows from the ledger: adapters on the engine, passages that are suspect
intake       documents into the stores
candidates   a batch in, a trained version in the ledger out; run_board: where runs stand
cycle_watch  the budget of learning cycles and the rules that stop them
local_learner, local_evaluator, local_engine, local_memory  the parts as objects of one process; learning_memory: its stores
permits      what a process that trains or judges asks at each commit
agent        all of it in one process (AutonomousLearningAgent); agent_home: what it holds over the files of a home;
             home_lock: one agent at a time in a home
code         the hash of the source that runs

requests     answered requests, masked, with the model's confidence (RequestLog); tables: feedback_tables
feedback     votes and corrections on answers (FeedbackStore)
gaps         groups of badly answered questions (GapDetector)
labelling    which answers people should look at next; label_queue: those that a retraining chose (LabelQueue)
tasks        gaps as learning tasks, until they are answered (LearningTasks)
pipeline     from feedback and gaps to data, a run, a version (TrainingPipelineIntegration); pipeline_memory: its stores
feedback_desk  what the HTTP surface asks of all that (FeedbackDesk); feedback_config: its settings
oversight    what people decide and ask about versions, beside the loop (Oversight)
schedule     when something is due, in UTC (Schedule)
jobs         which work runs by itself, and what becomes of what was missed (SchedulesConfig)
schedule_book, schedule_rows  which slots are settled, what waits, what ran: in SQLite
retraining   what is due is begun once, one run at a time (RetrainingScheduler); consolidation_job: the memory's
learn_until_done  a run of learning cycles in turn
"""
