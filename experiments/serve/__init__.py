"""Many clients of every kind at one server, and what is left when they are gone."""

from experiments.common.study import Claim, Flag, Part, Study

STUDY = Study(
    name="serve",
    claim="clients that stream, leave, read slowly or err get what they should, a seed gives the "
          "same text whoever else is served, and no page is kept; a deterministic engine reads "
          "prompts more slowly; copies of busy experts even their devices out",
    source="none of the reports: continuous batching over a paged cache",
    parts=(Part(
        name="clients",
        command="python -m experiments.serve.run clients",
        asks="answers of 200 clients for two minutes, texts of equal seeds, pages and memory at "
             "the end, and the status of SIGTERM",
        cost="4 minutes on two cores",
        quick="8 clients for five seconds, in half a minute",
        verdict=None,
        records=("clients",),
        flags=(Flag("--clients", "clients at once", int, 200),
               Flag("--seconds", "how long they ask", int, 120),
               Flag("--folder", "a run or a released checkpoint; default is `tiny`, trained for 20 "
                    "steps")),
        is_timed=True,
    ), Part(
        name="reading",
        command="python -m experiments.serve.run reading",
        asks="prompt tokens a second of an engine that reads at once, and of a deterministic one",
        cost="3 minutes on two cores",
        quick="two short prompts and one repeat, in a minute",
        verdict=None,
        records=("reading",),
        is_timed=True,
        is_tuned=True,
    ), Part(
        name="copies",
        command="python -m experiments.serve.run copies",
        asks="tokens of the busiest of four devices that share experts, over the mean one, on "
             "skewed traffic: without copies, and with those that EPLB makes for measured loads",
        cost="6 minutes on two cores",
        quick="one number of copies, in two minutes",
        verdict=None,
        records=("copies",),
        devices=8,
        is_on_cpu=True,
    )),
    claims=(
        Claim("clients", "a seed gives one text whoever else is served",
              "none of the reports", "clients", "clients", "supports",
              "{clients: of them / number} forms had two texts"),
    ),
)
