"""A cache of routed experts on the device: how often it is right, and what that is worth."""

from experiments.common.study import Claim, Flag, Part, Study

STUDY = Study(
    name="experts_cache",
    claim="a released folder whose routed experts are larger than the machine's memory answers "
          "a prompt, in a process that takes its cache and little more",
    source="none of the reports: they hold every expert on some device",
    parts=(
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
    claims=(
        Claim("fits", "a mixture larger than the machine's memory answers a prompt",
              "none of the reports", "large", "large", "supports",
              "{large: routed experts / --experts-cache 2GB} of experts in a process "
              "of {large: most memory of / --experts-cache 2GB}"),
    ),
)
