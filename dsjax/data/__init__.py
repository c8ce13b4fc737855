"""From text on disk to batches on the host.

Reading order: tokenizers (text <-> ids),
sources (files -> documents, held-out split), shards and shards_index (ids on disk), pack (documents
-> rows, FIM), curriculum (row length and batch size over training), loader (rows -> batches,
resumed exactly).
"""
