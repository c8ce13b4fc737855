"""Bounds of serving follow from bytes and FLOPs, and the ladder from its steps."""

import json

import pytest

from dsjax.cli.main import main
from dsjax.config.load import load
from dsjax.config.run import with_fields
from dsjax.errors import UserError
from dsjax.plan.cost import serving, site
from dsjax.plan.evidence import claims

V3 = with_fields(load("deepseek_v3"), train={"batch_size_start": None, "batch_size_ramp_steps": 0},
                 parallel={"expert": 144})
UNIT = site.parse("h800:144")


def test_a_few_rows_are_bound_by_weights_and_many_by_links_and_caches():
    few, many = (serving.decode(V3, UNIT, rows, 4096) for rows in (1, 256))
    shared = 61 * 231e6  # attention and the shared expert of every layer, in FP8
    assert few.weights > shared / (UNIT.bandwidth * serving.CACHE.value)
    assert few.step == few.weights + few.attention
    assert many.step == many.links
    assert many.links == pytest.approx(256 * few.links)
    assert many.attention == pytest.approx(256 * few.attention)


def test_a_cache_takes_70272_bytes_a_token():
    found = serving.decode(V3, UNIT, 3, 1000)
    assert found.cache_bytes == 3 * 1000 * 70_272  # V3's in bfloat16
    assert found.fits
    assert not serving.decode(V3, UNIT, 300, 4096).fits


def test_an_exchange_takes_what_the_isca_paper_says_of_its_form():
    """Insights into DeepSeek-V3, sec. 2.3.2: 3 bytes x 32 x 9 x 7K over 50 GB/s = 120.96 us.

    Ours has 8 copies, scales, a link at four fifths, and what stays within a node left out.
    """
    ours = serving.decode(V3, UNIT, 32, 4096).links / 58
    theirs = 3 * 32 * 9 * 7000 / 50e9
    assert theirs == pytest.approx(120.96e-6)
    sizes = (7168 * (3 + 4 / 128)) / (7000 * 3)
    assert ours == pytest.approx(theirs * 8 / 9 * sizes / 0.8 * (1 - 8 / 144))


def test_streamed_experts_are_their_bytes_over_the_link():
    chosen = 58 * 8 * 3 * 7168 * 2048  # numbers of a token's routed experts, a byte each
    assert serving.streamed(V3, 32e9) == pytest.approx(32e9 / chosen)
    dense = with_fields(V3, model={"moe": None, "dense_layers": 61}, parallel={"expert": 1})
    with pytest.raises(UserError, match="has no experts"):
        serving.streamed(dense, 32e9)


def test_the_ladder_multiplies_and_each_step_has_a_source():
    rungs = claims.ladder()
    assert {rung.kind for rung in rungs} == {"counted", "planned", "published"}
    assert all(rung.source and rung.training > 0.9 and rung.serving >= 1 for rung in rungs)
    training, serving_ = claims.product(rungs)
    assert 20 < training < 60
    assert serving_ > training
    latent = next(rung for rung in rungs if "latent" in rung.name)
    assert 3.6 < latent.serving < 8  # 4.1 times fewer cached bytes than 8 groups, and larger steps
    experts = next(rung for rung in rungs if "mixture" in rung.name)
    assert experts.training == pytest.approx(2448 / 250, rel=0.02)  # Insights, Table 2


def test_online_rates_are_the_same_share_of_both_bounds():
    shares = [one.online / one.bound for one in claims.served()]
    assert shares[0] == pytest.approx(shares[1], rel=0.1)
    assert all(0.3 < share < 1 for share in shares)


def test_the_commands_print_and_refuse(capsys):
    assert main(["plan", "--claims", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["said"] == 45
    words = ["plan", "deepseek_v3", "--on", "h800:144", "--decode"]
    assert main([*words, "88", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["tokens_per_s_per_device"] == pytest.approx(88 / said["step_s"])
    assert main([*words, "900"]) == 1
    assert "does not fit" in capsys.readouterr().out
    assert main([*words, "0"]) == 2
    assert "--decode 0" in capsys.readouterr().err
    assert main(["plan", "deepseek_v3", "--on", "h800:512", "--decode", "8"]) == 2
    assert "more than 256 experts" in capsys.readouterr().err
