"""Make tests/golden/tasks.json: prompts, verdicts and results as lm-evaluation-harness has them.

    python -m tests.golden.make_tasks    # needs lm-eval 0.4.13, math-verify and antlr4 4.11

The rows are those of tests/golden/tasks (see its ATTRIBUTION.md), handed to the harness's own task
files in the form that it downloads. A stand-in for a model says log-likelihoods that are a hash of
what is asked, and answers from a list; code is not run, but kept as it would be.
"""

import hashlib
import json
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
ROWS = HERE / "tasks"
ANSWERS = {
    "gsm8k": [" She has 7 days, 2*7 = 14.\n#### 14", " It is 1250*12 = $15,000 in all.",
              " 3-7 = 4\n#### 4 or -4.", ""],
    "hendrycks_math500": [" It is $\\frac56$.", " $x=3$", " $90$ degrees, or $91$", " 1/2"],
    "minerva_math500": [" Final Answer: The final answer is $\\frac{5}{6}$. I hope it is correct.",
                        " The final answer is $4$.", " It is \\boxed{90^\\circ}.", ""],
    "humaneval": ["    return True\n", "    pass\n", ""],
    "mbpp": ["def double(x):\r\n  return 2 * x\n", "def vowels(s):\n  return 0"],
}
SUBJECTS = ("abstract_algebra", "marketing", "college_physics")


def rows(name):
    return [json.loads(line) for line in (ROWS / f"{name}.jsonl").read_text().splitlines()]


def said(context, continuation):
    """A log-likelihood and whether it is greedy, from the text alone."""
    digest = hashlib.sha256(f"{context}\0{continuation}".encode()).digest()
    return -int.from_bytes(digest[:4], "big") / 2**28, digest[4] % 3 == 0


def public_form():
    """Rows as the hub has them, by split, for each of the harness's tasks."""
    arc = [{"id": row["id"], "question": row["query"][len("Question: "):-len("\nAnswer:")],
            "choices": {"text": row["choices"], "label": list("ABCDE"[: len(row["choices"])])},
            "answerKey": "ABCDE"[row["gold"]]} for row in rows("arc-challenge-test")]
    lambada = [{"text": f"{row['query']} {row['choices'][0]}"} for row in rows("lambada-test")]
    made = {
        "gsm8k": {"test": rows("gsm8k-test"), "train": rows("gsm8k-train")},
        "arc_challenge": dict.fromkeys(("test", "validation", "train"), arc),
        "hellaswag": dict.fromkeys(("validation", "train"), rows("hellaswag-val")),
        "lambada_openai": {"test": lambada},
        "humaneval": {"test": rows("HumanEval")},
        "mbpp": {"test": [row for row in rows("mbpp") if 11 <= row["task_id"] <= 510]},
        "hendrycks_math500": {"test": rows("math500")},
        "minerva_math500": {"test": rows("math500")},
    }
    for subject in SUBJECTS:
        made[f"mmlu_{subject}"] = {
            split: [row for row in rows(f"mmlu-{split}") if row["subject"] == subject]
            for split in ("test", "dev")}
    return made


FOLDERS = {"gsm8k": "gsm8k/gsm8k", "arc_challenge": "arc/arc_challenge",
           "hellaswag": "hellaswag/hellaswag", "lambada_openai": "lambada/lambada_openai",
           "humaneval": "humaneval/humaneval", "mbpp": "mbpp/mbpp",
           "hendrycks_math500": "hendrycks_math/hendrycks_math500",
           "minerva_math500": "minerva_math/minerva_math500",
           **{f"mmlu_{subject}": f"mmlu/default/mmlu_{subject}" for subject in SUBJECTS}}
SHOTS = {f"mmlu_{subject}": (0, 5) for subject in SUBJECTS}
PROGRAMS = []


class CodeEval:
    """Keeps programs instead of running them."""

    def compute(self, references, predictions, k):
        PROGRAMS.append([references, predictions])
        return {f"pass@{n}": 0.0 for n in k}, {}


def main():
    import evaluate as hub

    hub.load = lambda name: CodeEval()
    import lm_eval
    from lm_eval.api.metrics import pooled_sample_stderr
    from lm_eval.api.model import LM
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.tasks._yaml_loader import load_yaml

    class Said(LM):
        def loglikelihood(self, requests, disable_tqdm=False):
            return [said(*request.args) for request in requests]

        def loglikelihood_rolling(self, requests, disable_tqdm=False):
            return [said(request.args[0], "")[0] for request in requests]

        def generate_until(self, requests, disable_tqdm=False):
            return [ANSWERS[request.task_name][request.doc_id] for request in requests]

    home, made = Path(lm_eval.__file__).parent / "tasks", {}
    with tempfile.TemporaryDirectory() as folder:
        for name, splits in public_form().items():
            files = {}
            for split, content in splits.items():
                files[split] = f"{folder}/{name}-{split}.jsonl"
                Path(files[split]).write_text("".join(json.dumps(r) + "\n" for r in content))
            config = load_yaml(home / f"{FOLDERS[name]}.yaml")
            config |= {"dataset_path": "json", "dataset_name": None,
                       "dataset_kwargs": {"data_files": files}}
            if name == "mbpp":
                config["fewshot_config"] = {"sampler": "first_n", "samples": [
                    {**row, "is_fewshot": True} for row in rows("mbpp")[1:4]]}
            if name == "minerva_math500":
                config["fewshot_config"] = {"sampler": "first_n", "samples": [
                    {**row, "few_shot": "1"} for row in rows("math500-shots")]}
            for shots in SHOTS.get(name, (None,)):
                PROGRAMS.clear()
                task = ConfigurableTask(config=dict(config))
                found = lm_eval.simple_evaluate(
                    Said(), tasks=[task], num_fewshot=shots, bootstrap_iters=20,
                    confirm_run_unsafe_code=True)
                made[name if not shots else f"{name} {shots}"] = kept(name, found)
    groups = {}
    for shots in (0, 5):
        parts = [made[f"mmlu_{s}" if not shots else f"mmlu_{s} {shots}"] for s in SUBJECTS]
        results, sizes = [p["results"] for p in parts], [len(p["items"]) for p in parts]
        groups[shots] = {
            "acc": sum(r["acc,none"] * n for r, n in zip(results, sizes)) / sum(sizes),
            "stderr": float(pooled_sample_stderr([r["acc_stderr,none"] for r in results], sizes))}
    made["mmlu"] = groups
    text = json.dumps({"lm_eval": lm_eval.__version__, "tasks": made, "windows": windows(),
                       "equal": equal()}, indent=1)
    (HERE / "tasks.json").write_text(text + "\n")


PAIRS = [
    ("\\frac12", "\\frac{1}{2}"), ("\\frac1{72}", "\\frac{1}{72}"), ("\\tfrac{1}{2}", "1/2"),
    ("0.5", "\\frac{1}{2}"), (".5", "0.5"), ("0.50", "0.5"), ("\\sqrt3", "\\sqrt{3}"),
    ("\\sqrt3+\\sqrt{5}", "\\sqrt{3} + \\sqrt5"), ("\\sqrt", "\\sqrt"), ("\\sqrt", "x"),
    ("5\\text{ cm}", "5"), ("5 \\text{ cm}", "5\\text{cm}"), ("1\\text{ a}\\text{ b}", "1"),
    ("1\\text{ a}\\text{ b}", "1\\text{ a}\\text{ b}"), ("x=3", "3"), ("abc=3", "3"),
    ("x=y=3", "3"), ("90^\\circ", "90"), ("90^{\\circ}", "90"), ("50\\%", "50"), ("\\$5", "5"),
    ("1,000", "1000"), ("\\left( 1, 2 \\right)", "(1,2)"), ("a/b", "a/b"), ("a/b", "\\frac{a}{b}"),
    ("3/4", "\\frac34"), ("03/4", "3/4"), ("1/2/3", "1/2/3"), ("\\frac", "\\frac"),
    ("\\frac1", "\\frac1"), ("", ""), ("", "0"), ("2\\!3", "23"), ("a\n b", "ab"),
    ("-\\frac{1}{2}", "-0.5"), ("\\dfrac{x}{y}", "\\frac xy"), ("{.5}", "{0.5}"), ("1 .5", "10.5"),
    ("\\\\frac12", "\\frac12"), ("\\text{ yes}", ""),
]


def equal():
    """Pairs of answers, their equality by the MATH paper's rules, and their normal forms."""
    from lm_eval.tasks.hendrycks_math import utils

    def form(text):
        try:
            return utils.strip_string(text)
        except Exception:
            return None

    return [[one, other, utils.is_equiv(one, other), form(one), form(other)]
            for one, other in PAIRS]


def windows():
    """Contexts and continuations of texts of tokens 1, 2, ... after a first token 0."""
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

    return [{"length": length, "context": context, "windows": list(map(
        make_disjoint_window, get_rolling_token_windows(
            list(range(1, length + 1)), prefix_token=0, max_seq_len=context, context_len=1)))}
        for length, context in ((1, 4), (4, 4), (5, 4), (8, 4), (9, 4), (11, 4), (3, 1), (7, 9))]


def kept(name, found):
    """What a test compares: requests, verdicts of each item, and the results."""
    (results,) = found["results"].values()
    (samples,) = found["samples"].values()
    items = {}
    for sample in samples:
        metrics = {m if sample["filter"] == "none" else f"{m},{sample['filter']}": sample[m]
                   for m in sample["metrics"]}
        item = items.setdefault(sample["doc_id"], {"requests": [
            list(one.values()) for one in sample["arguments"].values()]
            if isinstance(sample["arguments"], dict) else list(map(list, sample["arguments"])),
            "metrics": {}})
        item["metrics"] |= metrics
    return {"items": [items[i] for i in sorted(items)], "programs": list(PROGRAMS),
            "results": {k: v for k, v in results.items() if isinstance(v, float)}}


if __name__ == "__main__":
    main()
