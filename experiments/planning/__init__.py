"""Predictions of runs that others have published, and of V3's own layout."""

from experiments.common.study import Claim, Part, Study

STUDY = Study(
    name="planning",
    claim="a step's time, memory and price follow from counts, data sheets and one fitted factor "
          "for each stack of programs",
    source="V3 report, sec. 3.2, 4.2 and Table 1; others: dsjax/plan/evidence/published.py",
    parts=(Part(
        name="published",
        command="python -m experiments.planning.run",
        asks="what dsjax plan predicts of published runs, and where V3's own layout stands among "
             "all that fit 2,048 H800",
        cost="half a minute",
        quick="the published runs, without the search",
        verdict="supports at the median, not for every run",
        records=("published", "v3"),
    ), Part(
        name="compiled",
        command="python -m experiments.planning.run compiled",
        asks="how the counted memory of V3 on 2,048 devices stands beside what the compiler asks "
             "for this project's own programs",
        cost="a second: it reads the records of experiments/pod",
        quick="all of it",
        verdict="contradicts: what is counted is a bound that today's programs exceed",
        records=("compiled",),
    ), Part(
        name="unseen",
        command="python -m experiments.planning.run unseen",
        asks="what dsjax plan predicts of published runs of other models, which fitted "
             "nothing",
        cost="half a minute",
        quick="all of it",
        verdict="contradicts outside DeepSeek's shapes: the median error is 21 %, and mixtures of "
                "small experts on 8 B200 run at a third of what is predicted",
        records=("unseen",),
    ), Part(
        name="claims",
        command="python -m experiments.planning.run claims",
        asks="what each innovation is worth in training and in serving, multiplied, beside 45",
        cost="a second",
        quick="all of it",
        verdict="cannot speak for 45: the product is 36 in training and depends on the baseline",
        records=("claims", "served"),
    )),
    claims=(
        Claim("times", "45 times as efficient, all ideas together",
              "articles of January 2025", "claims", "claims", "cannot speak",
              "{claims: together / training} times in training, by a baseline that is "
              "chosen"),
        Claim("time", "a step's time follows from counts and data sheets",
              "V3 sec. 3.2, 4.2 and Table 1", "published", "published", "supports",
              "median error {published: median size / error} over published runs"),
        Claim("others", "the same counts predict runs of other models", "none of the reports",
              "unseen", "unseen", "contradicts",
              "median error {unseen: median size of 15 errors / error} over 15 runs"),
    ),
)
