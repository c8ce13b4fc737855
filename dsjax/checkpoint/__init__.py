"""Checkpoints: whole or not there, checked byte by byte when read, on any mesh.

Reading order: `files` (what a finished folder is and how damage is found), `store` (saving while
training goes on, restoring, and parameters alone for inference), `hf` (released checkpoints in
Hugging Face's safetensors, and back; its own page names the `hf_` files in order).
"""
