"""A cache of routed experts on the device: how often it is right, and what that is worth."""

from experiments.common.study import REDRAW, Flag, Part, Study

STUDY = Study(
    name="experts_cache",
    claim="tokens of a trained mixture use some experts so much more than others, and a layer's "
          "choice is so well known before it, that a cache with room for a part of the experts "
          "holds or expects most of what is wanted",
    source="none of the reports: they hold every expert on some device",
    parts=(
        Part(
            name="sizes",
            command="python -m experiments.experts_cache.run sizes",
            asks="hits, predictions, bytes read and tokens a second of a trained model against the "
                 "size of the cache, with and without measured loads and prediction",
            cost="a quarter of an hour on two cores",
            quick="20 steps of training and two sizes, in two minutes",
            verdict=None,
            records=("sizes",),
            flags=(REDRAW, Flag("--folder", "a run with routed experts; default is one that is "
                                "trained first")),
            is_timed=True,
        ),
        Part(
            name="large",
            command="python -m experiments.experts_cache.run large",
            asks="memory, hits and tokens a second of a released folder that is larger than the "
                 "machine's memory",
            cost="ten minutes on two cores, and 32 GB of disk",
            quick="a folder of 0.3 GB, in a minute",
            verdict=None,
            records=("large",),
            flags=(
                Flag("--folder", "where the checkpoint is written, and stays; default is a "
                     "temporary folder"),
                Flag("--gigabytes", "routed experts of the checkpoint (30)", int, 30),
                Flag("--caches", "rooms for experts (2GB 8GB)", str, ("2GB", "8GB"), is_many=True),
            ),
            is_timed=True,
        ),
    ),
)
