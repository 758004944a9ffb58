"""Documents in, clean text out.

document    a folder or a git repository as a stream of raw documents; what cannot be read is named with its fix
clean       DataCleaner: bytes or HTML to clean Unicode text, personal data replaced by placeholders
pii         where personal data and secrets stand in a text, by pattern and checksum
corpus      the default corpus: documentation that every installation has
"""
