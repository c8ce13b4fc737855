"""Does FP8 training follow BF16 training, and what does each of its ingredients buy?"""
