"""What may be learned, and what stops it.

latch       the emergency stop: one durable file that every side effect asks right before its commit
screen      injection phrases and secrets, found in documents before they are kept and in answers before they leave
monitor     SafetyMonitor: the latch with its audit rows and the rules that stop training by themselves
"""
