"""Items of tasks in training corpora: how many, how fast they are found, and what they do."""

from experiments.common.study import Claim, Flag, Part, Study

AGAINST = Flag("--against", "files of tasks, as JSONL in their public form", is_many=True)

STUDY = Study(
    name="contamination",
    claim="an audit finds planted copies at the promised rates and speed, text older than the "
          "tasks has none of them but what they quote, and what a copy is worth depends on how "
          "often it was read",
    source="none of the reports; GPT-3, arXiv 2005.14165 appendix C",
    parts=(Part(
        name="overlap",
        command="python -m experiments.contamination.run overlap",
        asks="items of the given tasks in the embedded corpus and in given text, word by word and "
             "nearly",
        cost="five minutes on one core for 90 MB of text and eight tasks",
        quick="made-up items against the embedded corpus, in seconds",
        verdict="supports: only MMLU's quotations of older books are found",
        records=("overlap",),
        flags=(AGAINST, Flag("--text", "files of text beside the embedded corpus", is_many=True)),
    ), Part(
        name="rates",
        command="python -m experiments.contamination.run rates",
        asks="megabytes a second of both passes on one core, and the memory of an index",
        cost="five minutes on one core",
        quick="an eighth of the items and one repeat",
        verdict="supports",
        records=("rates",),
        flags=(AGAINST, Flag("--repeats", "repeats", int, 3)),
        is_timed=True,
    ), Part(
        name="recall",
        command="python -m experiments.contamination.run recall",
        asks="share of planted items found, and of items found in disjoint text, by how much of a "
             "copy was changed",
        cost="three minutes on one core",
        quick="a tenth of the items",
        verdict="supports from 20 words on; of shorter edited questions fewer are found",
        records=("recall",),
    ), Part(
        name="memory",
        command="python -m experiments.contamination.run memory",
        asks="loss of a small model on passages that it read 0, 1, 4 and 16 times, and how often "
             "it ends them word by word",
        cost="ten minutes on two cores",
        quick="30 steps",
        verdict="supports, though one reading cannot be told from none",
        records=("memory",),
        flags=(Flag("--seeds", "seeds", int, 3),),
        is_on_cpu=True,
        is_resumable=True,
        is_tuned=True,
    )),
    claims=(
        Claim("recall", "an audit of training text finds copies of a task",
              "articles of January 2025", "recall", "recall", "supports",
              "verbatim {recall: verbatim 20 to 120 / either}, edited {recall: 5 % "
              "swapped, 5 % dropped 20 to 120 / either}"),
        Claim("worth", "a copy is worth more the more often it was read",
              "articles of January 2025", "memory", "memory", "supports",
              "{memory: 16 / fewer than unread} nats after 16 readings, {memory: 1 96 "
              "/ fewer than unread} after one"),
    ),
)
