"""The stores of the system. Plain Python, no Ray, no language model in the write path.

management.py   MemoryManagement: remember, recall, the context of a request, forget, whom to believe
settings.py     the section [memory] of a system's configuration
types.py        episodes, facts, claims, hits and acknowledgements: what flows in and out

episodic.py     EpisodicMemory: durable passages, recalled by words and by meaning; its rows in episode_rows.py
shards.py       EpisodicShards: several stores with the results of one
recall.py       one recall over one store or several; retrieval.py fuses the rankings
episode_index.py, columns.py, words.py, rag_index.py   words, filters and vectors of a SQLite store
episode_index_postgres.py                              the same in PostgreSQL
embed.py        text -> unit vectors (all-MiniLM-L6-v2)
passages.py     text -> passages small enough to be retrieved and learned whole

semantic.py     SemanticMemory: what is held, since when, and who says it; its rows in semantic_rows.py
facts.py        text -> (subject, relation, object) by sentence patterns; grammar.py: the words that it knows
questions.py    what asks for a fact's object: taught questions, and a held-out one
beliefs.py      claims -> what is held at a moment of the world and of the record
concepts.py     ConceptGraph: the facts as a graph in memory; rules.py derives more of them
alarms.py       who contradicts whom; enrichment.py: facts that a model reads, beside the writes
trust.py        how far each source is believed

working.py      WorkingMemory: what each session holds in mind, bounded, with time to live, LRU and pins
consolidate.py  the daily consolidation; revisions.py keeps what undoes it
store.py        SQLite in WAL mode: one writer, many readers, schema version; postgres.py the same on a server
"""
