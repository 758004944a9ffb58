"""The stream that the system reads by itself, for as long as it runs.

config      where a source lies: folder, git repository, HTTP, growing JSON Lines file
batch       what a reader gives: documents, what was refused, what is gone, and the place behind them
listed      folders and git repositories: what changed since the last pass, and what is gone
git         what of git is needed: a commit's files and their contents
jsonl       a file that others append to
http        pages, JSON lists and JSON Lines; `http_fetch` gets one answer within its bounds, `http_address` says from where
readers     a configuration in, its reader out
cursors     how far each source was read, in SQLite
schedule    which source is read next, and when one that fails is tried again
stream      a bounded batch of the next source into the store, then the cursor behind it (StreamReader)
reading     the thread that does so for as long as its process lives (ReadingThread)
"""
