"""Versions of the model: what they are, how they are judged, and who may change what serves.

states.py       the states of a version, the visible table of TRANSITIONS, and the pure check
report.py       EvaluationReport: what an evaluation measured; gate_results.py, gate_safety.py: parts of gates.py
gates.py        report -> pass, fail or inconclusive per gate -> go, quarantine or pause
data_gates.py   the gates on what was learned: the data of the batch, and what the candidate believes afterwards
bundle.py       the immutable folder of a version; its name is the hash of its manifest
ledger.py       VersionLedger: states, slots, lineage and held back episodes, in SQLite
transaction.py  the ledger's writes, each with its audit row
schema.py       its tables and records
audit.py        the hash chain
checkpoint.py   the files that say how far it had come: beside the ledger, and signed elsewhere
verify.py       the check of a whole ledger file
history.py      what the log says about one version
approval.py     who may approve what, bound to hashes
governance.py   rejection, and the way out of quarantine
readonly.py     a ledger that is only looked at
explain.py      why a version serves or does not
forensics.py    what went wrong with one that was put away

Order of the life: start_run -> fix_bundle -> bind_report -> promote, or quarantine; rollback undoes a promotion, release
leads out of quarantine to an evaluation anew.
"""
