"""Problems made here, from a seed alone: prompts, answers and worked solutions, at any difficulty.

Reading order: task (a problem, its split, streams of them), digits (sums and parities: the recipe),
arithmetic (addition, multiplication), steps (chains, sorting, logic), countdown (many right
answers, and their rule), catalog (all by name).

Nothing is read from a file or a network. A tenth of all problems is held out, decided by a hash of
a problem's operands: no seed, level or order of operands carries one across.
"""
