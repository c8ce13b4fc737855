"""What is to be done, said before anything is allocated: frozen dataclasses that check themselves.

Reading order: model (sizes and choices), loss and schedule (weights; numbers that change with
training), run (a model with its data, optimizer, places and devices), fields (what a field may
hold), load (a config file plus command-line overrides), refusal (a wrong flag as a sentence),
stored (a run as JSON and back).
"""
