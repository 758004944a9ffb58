"""Versions of the model: what they are, how they are judged, and who may change what serves.

states.py       the states of a version, the visible table of TRANSITIONS, and the pure check
report.py       EvaluationReport: what an evaluation measured; gate_results.py, gate_safety.py: parts of gates.py
gates.py        report -> pass, fail or inconclusive per gate -> go, quarantine or pause
bundle.py       the immutable folder of a version; its name is the hash of its manifest
ledger.py       VersionLedger: states, slots, lineage and held back episodes, in SQLite
transaction.py  the ledger's writes, each with its audit row
schema.py       its tables and records
audit.py        the hash chain and its checkpoint file
verify.py       the check of a whole ledger file

Order of the life: start_run -> fix_bundle -> bind_report -> promote, or quarantine; rollback undoes a promotion.
"""
