"""From text on disk to batches on the host.

Reading order: tokenizer (text <-> ids), tokenizer_file (what its file says, obeyed or refused),
tokenizer_settings (begin and end tokens), patterns and long_words (what would take too long),
sources (files -> documents, held-out split), shards and shards_index (ids on disk), pack (documents
-> rows, FIM), curriculum (row length and batch size over training), loader (rows -> batches,
resumed exactly).
"""
