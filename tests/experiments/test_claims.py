"""The table of claims says what the studies' records say, one line a claim, and what is open."""

import dataclasses
import json

import pytest

from experiments.common import claims, record, study
from experiments.common.study import Claim, Part, Study

STUDIES = study.studies()


def test_the_pages_show_what_the_records_say():
    rows = claims.rows()
    shown = {page.name for page in record.pages() if "<!-- claims" in page.read_text()}
    assert shown == {"README.md", "claims.md"}
    for page in record.pages():
        text = page.read_text()
        assert claims.fill(text, rows) == text, (
            f"{page.name} differs from the records: python -m experiments.common.claims")
    assert {one.verdict for one in rows} <= set(claims.WORDS)


def test_every_study_has_a_claim_and_every_claim_a_part_and_a_record_of_it():
    for one in STUDIES:
        assert one.claims, f"{one.name} is missing from docs/claims.md"
        keys = [claim.key for claim in one.claims]
        assert len(set(keys)) == len(keys)
        for claim in one.claims:
            part = one.part(claim.part)
            assert claim.record in part.records
            assert bool(claim.verdict) == bool(claim.number)


def test_every_verdict_in_a_record_belongs_to_a_claim_and_every_claim_to_one():
    for one in STUDIES:
        for name in {claim.record for claim in one.claims if claim.verdict is None}:
            path = one.folder / "records" / f"{name}.json"
            if path.is_file():
                told = json.loads(path.read_text())["verdicts"]
                wanted = {c.key for c in one.claims if c.record == name and c.verdict is None}
                assert set(told) == wanted


@pytest.fixture
def fake(monkeypatch, tmp_path):
    monkeypatch.setattr(study, "ROOM", tmp_path)
    monkeypatch.setattr(record, "ROOT", tmp_path)
    part = Part("part", "python -m experiments.fake.run", "what is", "no time", "less", None,
                ("one",))
    ruled = Claim("less", "it is less", "sec. 1", "part", "one")
    fixed = Claim("two", "it is two", "none of the reports", "part", "one", "supports",
                  "{one: tiny / ratio} times")
    return Study("fake", "it is", "sec. 0", (part,), claims=(fixed, ruled))


def test_a_claim_is_open_until_its_record_is_there(fake):
    assert [one.verdict for one in claims.rows([fake])] == ["open", "open"]
    assert claims.count(claims.rows([fake])) == "2 claims: 2 open"
    folder = fake.folder / "records"
    folder.mkdir(parents=True)
    made = {"columns": ["shape", "ratio"], "rows": [["tiny", "2.5"]],
            "verdicts": {"less": {"verdict": "contradicts", "number": "+0.1 nats"}}}
    (folder / "one.json").write_text(json.dumps(made))
    ruled, fixed = claims.rows([fake])
    assert (ruled.verdict, ruled.number, ruled.record) == (
        "contradicts", "+0.1 nats", "fake/records/one.json")
    assert (fixed.verdict, fixed.number) == ("supports", "2.5 times")
    assert claims.count([ruled, fixed]) == "2 claims: 1 supported, 1 contradicted"
    page = ("<!-- claims -->\nold\n<!-- /claims -->\n"
            "x <!-- claims:count -->old<!-- /claims:count -->")
    filled = claims.fill(page, [ruled, fixed])
    assert "| it is less | sec. 1 | contradicts | +0.1 nats |" in filled
    assert claims.fill(filled, [ruled, fixed]) == filled
    assert claims.fill(page, [dataclasses.replace(ruled, number="-0.1 nats"), fixed]) != filled


def test_a_page_shows_the_answer_of_a_part_once_it_is_there(fake, monkeypatch):
    monkeypatch.setattr(claims, "studies", lambda: [fake])
    page = "<!-- answer:fake part -->\nold\n<!-- /answer -->\n"
    assert claims.fill(page, []) == page.replace("old", "Not run yet.")
    (fake.folder / "records").mkdir(parents=True)
    made = {"columns": ["arm", "nats"], "rows": [["fine", "3.5"]], "is_clean": True, "verdicts": {
        "less": {"verdict": "contradicts", "number": "+0.1 nats"}}} | record.environment("run")
    (fake.folder / "records" / "one.json").write_text(json.dumps(made))
    shown = claims.fill(page, [])
    assert "| fine | 3.5 |" in shown
    assert "- *less*: contradicts; +0.1 nats." in shown
    assert claims.fill(shown, []) == shown


def test_the_index_shows_the_verdict_of_a_rule(fake):
    assert study.verdict(fake, fake.parts[0]) is None
    (fake.folder / "records").mkdir(parents=True)
    (fake.folder / "records" / "one.json").write_text(json.dumps(
        {"verdicts": {"less": {"verdict": "supports", "number": "-0.1"}}}))
    assert study.verdict(fake, fake.parts[0]) == "less: supports"
