"""Many requests at once on one model: rows come and go, and their caches share pages.

Reading order: config (sizes), request (what is asked, and what happens to it), pages (which page of
the cache holds what), scheduler (what the next step computes), ranks (which device serves whom),
steps (the programs), place (one device or a mesh), experts (theirs over a mesh, and their copies),
asked (what the host asks, as arrays), device (what lies there, and what is compiled at the start),
trial (what is tried then), engine (requests in, tokens out).
"""
