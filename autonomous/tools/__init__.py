"""Tools: what a question may be looked up or worked out with. KnowledgeIntegration (autonomous/knowledge.py) calls them.

tool              the protocol of a tool, its results and errors
config            what is enabled, where code lies, how much a call may use, how strictly programs are shut in
calculator        arithmetic, exact where it can be
code_search       lines and definitions in configured folders and in stored passages
documentation     passages of the memory
python_sandbox    runs a Python program; confined_process starts and watches it, confined is what it is shut in by,
                  syscall_filter what it may ask of the kernel
quoting           texts of tools as data for the model
plan              from a question to an answer, step by step: which tool, what the model is asked, what it may ask for
"""
