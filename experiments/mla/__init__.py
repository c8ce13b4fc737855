"""Is latent attention as good as multi-head attention, at a fraction of its cache?"""

from experiments.common.study import REDRAW, Claim, Part, Study

STUDY = Study(
    name="mla",
    claim="latent attention loses nothing against multi-head attention and caches a fraction of "
          "it; GQA and MQA pay for theirs",
    source="V2 report, sec. 2.1 and Tables 1, 8 and 9; V3 report, sec. 2.1.1",
    parts=(
        Part(
            name="arms",
            command="python -m experiments.mla.run arms",
            asks="held-out loss and cache of MHA, GQA, MQA and MLA of equal parameters",
            cost="12 CPU minutes",
            quick="one arm of three steps, in half a minute",
            verdict=None,
            records=("arms",),
            arms="arm-*.json",
            flags=(REDRAW,),
            is_resumable=True,
        ),
        Part(
            name="cache",
            command="python -m experiments.mla.run cache",
            asks="bytes a token that released shapes cache, by formula",
            cost="a second",
            quick="the same",
            verdict=None,
            records=("cache",),
        ),
    ),
    claims=(
        Claim("mha", "MLA has no higher loss than MHA of equal parameters", "V2 Table 9", "arms",
              "arms"),
        Claim("gqa", "GQA and MQA have a higher loss than MHA", "V2 Table 8", "arms", "arms"),
        Claim("cut", "V2's cache is 93.3 % smaller than DeepSeek 67B's", "V2 abstract", "cache",
              "cache"),
        Claim("times", "V3's cache is 4.66 and 7.28 times smaller than those of two dense models",
              "arXiv 2505.09343, Table 1", "cache", "cache"),
    ),
)
