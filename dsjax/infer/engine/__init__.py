"""Many requests at once on one model: rows come and go, and their caches share pages.

Reading order: config (sizes), request (what is asked, and what happens to it), pages (which page of
the cache holds what), scheduler (what the next step computes), steps (the programs), device (what
lies on it, and what is compiled at the start), engine (requests in, tokens out).
"""
