"""A folder's experts stay where they are and are read one by one; texts are the resident model's.
"""

import dataclasses
import json

import jax
import pytest

from dsjax import params
from dsjax.checkpoint.store import Store as Checkpoints
from dsjax.cli.main import main
from dsjax.config.run import RunConfig, TrainConfig
from dsjax.config.stored import run_to_json
from dsjax.data.tokenizers import tokenizer
from dsjax.infer import Choice, Model, Options, Room, Sampling, generate, load
from dsjax.infer.engine.device import Device, Setting
from dsjax.infer.engine.engine import Engine
from dsjax.infer.offload import store
from dsjax.infer.offload.cache import ExpertCache, nbytes
from dsjax.model import transformer
from dsjax.numerics import gemm
from dsjax.released import files, hf, read
from tests import agreement
from tests.infer.offload import models

TEXT = "To be, or not to be: that is the question.\n" * 3
MOE = dataclasses.replace(models.MOE, expert_dim=129, groups=3)  # blocks of 128 have edges
MLA = dataclasses.replace(agreement.MLA, latent_norm_eps=1e-6)  # as released ones
CFG = dataclasses.replace(agreement.TINY, vocab=300, d_model=130, moe=MOE, mtp_depth=1,
                          attention=MLA)
PROMPTS = [[7, 1, 200], [3]]
GREEDY = Sampling(temperature=0, max_new_tokens=6)
KINDS = {"run": ("run", "fp32"), "run in bf16": ("run", "bf16"), "released": ("bf16", "bf16"),
         "released, wide": ("bf16", "fp32"), "FP8": ("fp8", "fp8"), "FP8, wide": ("fp8", "fp32")}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A run's folder, and released ones in bfloat16 and FP8, of the same parameters."""
    at = tmp_path_factory.mktemp("models")
    drawn = agreement.draw(transformer.specs(CFG), 5)
    kept = Checkpoints(at / "run" / "checkpoints", 1, transformer.specs(CFG))
    kept.save(1, {"params": drawn}, {})
    kept.close()
    run_to_json(RunConfig("run", CFG, train=TrainConfig(seq_len=40)), at / "run" / "config.json")
    hf.save(at / "bf16", CFG, drawn, dtype="bfloat16")
    hf.save(at / "fp8", CFG, drawn, dtype="bfloat16", fp8=True)
    for name in ("run", "bf16", "fp8"):
        tokenizer.train_bpe([TEXT], 280).save(at / name / "tokenizer.json")
    return at


def offloaded(folder, precision, experts):
    """A model with room for so many experts."""
    said = []
    size = 3 * CFG.d_model * MOE.expert_dim * 4
    return load(folder, Choice(precision, experts=Room(experts * size)), said.append), said


@pytest.mark.exhaustive  # the command below says the resident model's text
@pytest.mark.parametrize("kind", list(KINDS))
def test_texts_are_the_resident_models_with_the_same_products(kind, folders):
    folder, precision = KINDS[kind]
    model, said = offloaded(folders / folder, precision, 5)
    assert "slots on the device hold" in said[-1]
    assert ("its files" if folder != "run" else "host's memory") in said[-1]
    whole = load(folders / folder, Choice(precision), lambda _: None)
    same = dataclasses.replace(whole.backend, dispatch=models.apart)
    wanted = generate(whole.params, whole.cfg, PROMPTS, GREEDY, Options(same))
    made = generate(model.params, model.cfg, PROMPTS, GREEDY,
                    Options(model.backend, experts=model.experts))
    assert made.completions == wanted.completions
    assert made.report.decode_experts.hits < made.report.decode_experts.wanted


def test_a_slot_of_an_fp8_checkpoint_holds_codes_and_scales(folders):
    opened = read.open_folder(folders / "fp8", mtp=False).weights
    there = store.Store(store.split(opened)[1])
    cfg = dataclasses.replace(CFG, mtp_depth=0)
    cache = ExpertCache(there, cfg, gemm.FP8, Room(4 * there.expert_bytes))
    table = cache.hold(1, [0, 8])
    assert cache.pool.gate_up.dtypes == cache.pool.down.dtypes == ("float8_e4m3fn", "float32")
    slot = nbytes(cache.pool) / cache.slots.count
    assert slot == there.expert_bytes < 3 * CFG.d_model * MOE.expert_dim * 1.01
    for expert in (0, 8):
        wanted = there.read((1, expert))
        for stack, matrix in ((cache.pool.gate_up, wanted.w_gate_up),
                              (cache.pool.down, wanted.w_down)):
            made = stack.of(table[expert], gemm.FP8)
            assert models.same_bits(made, gemm.FP8.from_codes(jax.device_put(matrix)))


def test_only_the_experts_that_are_wanted_are_read_and_their_pages_may_stay(folders, monkeypatch):
    seen, rows = [], files.Tensor.rows

    def watched(tensor, start, stop):
        seen.append(tensor)
        return rows(tensor, start, stop)

    monkeypatch.setattr(files.Tensor, "rows", watched)
    model, _ = offloaded(folders / "bf16", "bf16", 5)
    assert not [t for t in seen if ".experts." in t.name]
    assert not [t for t in seen if t.name.startswith(f"model.layers.{CFG.layers}.")]
    generate(model.params, model.cfg, [[7]], Sampling(temperature=0, max_new_tokens=1),
             Options(model.backend, experts=model.experts))
    got = {t.name.rpartition(".experts.")[2].partition(".")[0] + t.name[:14]
            for t in seen if ".experts." in t.name}
    wanted = model.experts.counts.wanted
    assert wanted == 2 * MOE.experts_per_token
    assert wanted <= len(got) < 2 * MOE.experts  # predicted ones, too
    assert all(t.is_read_again for t in seen if ".experts." in t.name)


def test_the_trunk_is_without_experts(folders):
    model, _ = offloaded(folders / "bf16", "fp32", 5)
    held = sum(a.size for a in jax.tree.leaves(model.params))
    specs = transformer.specs(model.cfg)
    assert held == params.size(store.without_experts(specs))
    assert held < params.size(specs) / 2


def test_the_command_tells_its_use_and_the_same_text(folders, capsys):
    flags = ["generate", str(folders / "run"), "--prompt", "that is", "--temperature", "0",
             "--max-new-tokens", "5", "--json"]
    assert main(flags) == 0
    whole = json.loads(capsys.readouterr().out)
    assert whole["experts"] == {"prefill": None, "decode": None}
    assert main([*flags, "--experts-cache", "1.2MB"]) == 0
    found = capsys.readouterr()
    made = json.loads(found.out)
    assert made["completions"] == whole["completions"]
    used = made["experts"]["decode"]
    assert used["wanted"] == 4 * 2 * MOE.experts_per_token
    assert used["hits"] + used["ahead"] <= used["wanted"]
    assert used["hit_rate"] == used["hits"] / used["wanted"]
    assert "stay in the host's memory" in found.err


@pytest.mark.parametrize(("flags", "said"), [
    (["--experts-cache", "2XB"], "2GB, 1.5GiB or 500MB"),
    (["--experts-cache", "1KB"], "give it at least"),
    (["--experts-cache", "2MB", "--draft"], "--draft"),
    (["--experts-cache", "2MB", "--parallel.expert", "3"], "--parallel"),
    (["--no-predict-experts"], "--experts-cache"),
    (["--expert-loads", "loads.json"], "--experts-cache"),
])
def test_what_does_not_go_together_is_refused_in_a_sentence(flags, said, folders, capsys):
    assert main(["generate", str(folders / "run"), "--prompt", "a", *flags]) == 2
    found = capsys.readouterr()
    assert said in found.err.splitlines()[-1]
    assert "Traceback" not in found.err


def test_measured_loads_fill_the_slots(folders):
    loads = [[0.0] * MOE.experts for _ in range(2)]
    loads[0][3], loads[1][8] = 5.0, 9.0
    size = 3 * CFG.d_model * MOE.expert_dim * 2
    room = Room(4 * size, tuple(map(tuple, loads)), is_ahead=False)
    model = load(folders / "bf16", Choice("bf16", experts=room), lambda _: None)
    assert model.experts.slots.count == 3
    assert {(0, 3), (1, 8)} <= set(model.experts.slots.keys)


@pytest.fixture(scope="module", params=[pytest.param(2, marks=pytest.mark.exhaustive), 1],
                ids=["two rows", "one row"])
def engine(request):
    """An engine over an offloaded model, whose prompts want more experts than there are slots."""
    backend, _ = models.backends()
    model = Model(models.CFG, models.trunk(backend), None, 40, backend, None,
                  experts=models.cache(7))
    return Engine(Device(model, Setting(slots=request.param, max_len=40, pages=20, page_size=4,
                                        chunk=8, top_logprobs=3)))


def test_an_engine_serves_it_and_compiles_nothing_after_its_start(engine, compiles):
    _, same = models.backends()
    prompts = [[1, 2, 3, 4, 5, 6, 7, 8, 9, 10], [4], [5, 6, 7]]
    wanted = [generate(models.PARAMS, models.CFG, [prompt], GREEDY, Options(same)).completions[0]
              for prompt in prompts]
    compiles.clear()
    assert texts(engine, prompts) == [done.tokens for done in wanted]
    assert not compiles
    stats = engine.stats()
    assert (stats.running, stats.pages_owned) == (0, 0)


def test_an_engine_fetches_for_rows_that_are_there_alone(engine):
    """A prompt of one token is decoded at once; a pass may be started that is not used."""
    counts = engine.device.experts.counts
    before = counts.wanted
    (text,) = texts(engine, [[4]])
    a_pass = 3 * models.MOE.experts_per_token
    assert len(text) * a_pass <= counts.wanted - before <= (len(text) + 1) * a_pass
    before = counts.wanted
    engine.device.advance([[]], [[]], False)  # a program of padding alone
    assert counts.wanted == before


def texts(engine, prompts):
    """Tokens of each prompt, served at once."""
    got = [[] for _ in prompts]
    for prompt, tokens in zip(prompts, got):
        engine.add(prompt, GREEDY, lambda output, tokens=tokens: tokens.extend(output.tokens))
    for _ in range(100):
        if not engine.step():
            break
    return [tuple(tokens) for tokens in got]


def test_an_engine_refuses_drafts_of_an_offloaded_model():
    backend, _ = models.backends()
    model = Model(models.CFG, models.trunk(backend), None, 40, backend, None,
                  experts=models.cache(7))
    with pytest.raises(ValueError, match="--experts-cache"):
        Device(model, Setting(draft=True))
