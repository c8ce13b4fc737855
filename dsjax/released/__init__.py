"""Released checkpoints (Hugging Face safetensors) as dsjax parameters, and back.

Reading order: names (which tensor is which parameter), attributes, rotary and config (config.json,
both directions), files (tensors on disk), side (the files beside them), rows (a tensor's rows in a
leaf), read (a folder as `Weights`), write (any `Weights` as a folder), target (the folder that is
made), convert (run folders, from disk to disk), hf (the door: `hf.load`, `hf.save`).
"""
