"""Bring-up, configuration, jobs and the command line.

config   the TOML a person edits, resolved and checked
state    what is running, in one small file
up, stop bring the system up on this machine, take it down
processes  the processes of one system, found by their environment
client   the HTTP API from Python; client_* its groups of endpoints, client_connection the way to the server
feed     a folder or repository into the running system
cli      the command `autonomous`; cli_* its groups of commands
logs, progress  log files and progress bars for them
guided   the guided run of `make demo`; guided_stop its stop checks, report its page
bench    the harness of benchmarks/; bench_variants compares in processes of their own
jobs     entry points of `ray job submit`
"""
