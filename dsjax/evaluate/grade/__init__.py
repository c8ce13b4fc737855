"""Verdicts on what a model wrote: programs are run behind walls, answers are compared.

Reading order: estimators (pass@k, votes, standard errors), sandbox (a program is run, bounded and
cleared away), supervisor (the process that does it), walls (what the kernel refuses to a program),
syscalls (the filter among them), wire (values between two processes), candidate and checker (a
program, and the check that calls it from another process), code (programs and checks as HumanEval
and MBPP compose them), mathematics and comparer (equality of answers, by math-verify in a process
that can be killed).
"""
