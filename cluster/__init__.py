"""Bring-up, configuration, jobs and the command line.

config   the TOML a person edits, resolved and checked
state    what is running, in one small file
up, stop bring the system up on this machine, take it down
client   the HTTP API from Python
cli      the command `autonomous`
guided   the guided run of `make demo`
bench    the harness of benchmarks/
jobs     entry points of `ray job submit`
"""
