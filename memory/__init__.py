"""The stores of the system. Plain Python, no Ray, no language model in the write path.

types.py      episodes, facts, hits and acknowledgements: what flows in and out
passages.py   text -> passages small enough to be retrieved and learned whole
facts.py      text -> (subject, relation, object) by sentence patterns, and the questions that ask for them
embed.py      text -> unit vectors (all-MiniLM-L6-v2)
store.py      SQLite in WAL mode: one writer, many readers, schema version
rag_index.py  RAGIndex: vectors in faiss, rebuildable from the store
retrieval.py  question words for BM25, and the fusion of BM25 and vector scores
episodic.py   EpisodicMemory: durable passages, recalled by words and by meaning; its tables in episode_rows.py
semantic.py   SemanticMemory: facts as a graph, each with the episodes that say it
working.py    WorkingMemory: bounded key-value store with time to live, LRU and pins
"""
