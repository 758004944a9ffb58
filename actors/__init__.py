"""Thin Ray actors around the stores and the mind: a method decodes, calls the logic, answers.

base      what every shell has: identity, health, snapshot; `as_actor`
registry  the long-lived named actors, created once and replaced when their code changed
episodic, semantic, working, stream, tools, learner, evaluator, safety, agent, feedback   one shell each
ports     the agent's parts, as calls to the other actors and to the engine
"""
