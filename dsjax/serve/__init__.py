"""The HTTP door of the engine: OpenAI's interface over requests that share one model.

Reading order: protocol (what the door asks of an engine), refusal (a 4xx in OpenAI's shape), schema
(a body becomes a typed request), template (messages become a prompt), text (tokens become text that
ends before a stop string), choice (one answer as it grows, with bounded memory), answers (OpenAI's
objects), app (routes, keys, limits), metrics (what Prometheus reads), server (the engine's thread
and the process's signals); page.html is what a browser sees.
"""
