"""Drafts of MTP modules on a trained model: how many are accepted, and what they gain."""

from experiments.common.study import Flag, Part, Study

STUDY = Study(
    name="speculation",
    claim="the second token that an MTP module drafts is accepted in 85 to 90 % of passes, and "
          "decoding becomes 1.8 times as fast",
    source="V3 report sec. 5.4.3",
    parts=(Part(
        name="drafts",
        command="python -m experiments.speculation.run",
        asks="acceptance by depth, tokens of a pass, and tokens a second beside plain decoding, by "
             "temperature and rows, of `tiny` with one module and with a chain of two",
        cost="20 minutes on two cores, of which 12 train the two models",
        quick="4 steps of training and one repeat, in two minutes",
        verdict=None,
        records=("drafts",),
        flags=(Flag("--steps", "steps of training (1200)", int, 1200),),
        is_timed=True,
        is_tuned=True,
    ),),
)
