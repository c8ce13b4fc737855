"""From text on disk to batches on the host.

Reading order: tokenizer (text <-> ids), sources (files -> documents, held-out split), shards (ids
on disk), pack (documents -> rows, FIM), curriculum (row length and batch size over training),
loader (rows -> batches, resumed exactly).
"""
