"""Released checkpoints (Hugging Face safetensors) as dsjax parameters, and back.

Reading order: names (which tensor is which parameter), attributes, config and config_out
(config.json), files (tensors on disk), side (the files beside them), plan (what goes where, or why
not), pieces (the numbers of a piece), devices (onto and from devices), write (files), disk (run
folders, from disk to disk), hf (the door: `hf.load`, `hf.save`).
"""
