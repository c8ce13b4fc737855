"""Benchmarks of `dsjax bench`: FP8 products, layouts that must agree, and bytes on links."""
