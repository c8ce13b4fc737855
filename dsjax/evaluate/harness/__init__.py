"""lm-evaluation-harness drives a model of dsjax, under the name `dsjax`; no torch is needed.

    python -m dsjax.evaluate.harness --model dsjax --model_args folder=runs/x --tasks arc_easy

    from dsjax.evaluate.harness.model import DsjaxLM
    lm_eval.simple_evaluate(DsjaxLM(folder="runs/x"), tasks=["arc_easy"])

The harness has no way of finding a model outside its own package, so `lm_eval --model dsjax` alone
does not know it: the command above is lm_eval's own, after the name is registered.

Reading order: installed (the harness, of a version that this fits), arguments (`--model_args`),
generation (`--gen_kwargs` and those of a task), chat (a template's text), model.
"""
