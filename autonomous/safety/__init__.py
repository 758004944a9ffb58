"""What may be learned, and what stops it.

latch       the emergency stop: one durable file that every side effect asks right before its commit; latch_state: how it
            stands, latch_file: its bytes on disk
screen      injection phrases and secrets, found in documents before they are kept and in answers before they leave
monitor     SafetyMonitor: the latch with its audit rows and the rules that stop by themselves
watchdog    the process outside Ray that carries out kills; heartbeat: its silence is a stop
processes   which processes a kill ends, and how it is seen that they are gone; machine: which machine this is
reset_request  a reset that waits for a second person
rules       those rules: an observation in, the rule and its evidence out
poison      passages that say what others deny, or say one thing too often; poison_limits: how much of it is borne
statements  what a sentence gives a value to, so that other words for it can be compared; slots: what has a value
evidence    what the memory holds about what passages say, by whom and since when
probes      questions that show whether a candidate has given up a belief
"""
