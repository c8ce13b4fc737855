"""Time, memory and money of a run, by arithmetic, before a machine is rented.

Reading order: site (a machine of so many chips, and its links), work (FLOPs and bytes of a token
in a layer), efficiency (shares of the data sheets' rates, each with its source, and what was
fitted), exchange (tokens to their experts), stage (seconds of a microbatch on a device), step (the
time of a step), room (bytes of a device), bill (days and dollars), search (all layouts), serving
(decoding and prompts).
"""
