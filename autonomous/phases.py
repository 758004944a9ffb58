"""Phases of a learning run, as its status tells them. Without numpy: the command line asks for them too."""

ENDED = ("done", "failed")
"""Those of a run that is over."""
