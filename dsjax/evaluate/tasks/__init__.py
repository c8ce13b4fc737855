"""Tasks: each a small file that says where its rows come from, how they are asked and graded.

Reading order: rows (a file's rows, checked), task (prompts with examples), then a file a task: arc,
gsm8k, hellaswag, humaneval, lambada, math500 (with latex, its normal forms), mbpp, mmlu, text.
Every file cites the definition that it follows.
"""
