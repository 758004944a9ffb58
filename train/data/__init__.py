"""Documents in, clean text and packed tokens out. docs/data.md says how the parts work together.

documents     document, corpus, source_config, listing, repositories, units, readers, lines, records, parquet_rows,
              annotations, books, epub, pdf, page_text; common_crawl, warc; source_code, code_*, licence*, spdx,
              package_metadata, archive*, *_stream, repository
text          clean, html, pii, language, language_model
judgement     quality*, words, word_*, decontaminate, ngrams
duplicates    minhash, dedup, dedup_edges, dedup_index, dedup_segment, signed_file, line_dedup
tokens        tokenizer*, packing, storage, stored_file, token_shard, batch
training      loader, mixture, permutation, token_sources
runs          config, pipeline, jobs*, run, run_folder, manifest, report, estimate, prepare
shared        schema, filesystem, jit
"""
