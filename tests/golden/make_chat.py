"""Make tests/golden/chat_templates.json: prompts as transformers renders them, for `make test`.

    python -m tests.golden.make_chat deepseek-r1/tokenizer_config.json    # needs transformers

DeepSeek-R1's template is a part of its release under the MIT License (Copyright (c) 2023 DeepSeek);
the others are written here, each for what templates do with jinja. Other models' templates are
compared live, by tests/conformance/test_chat_templates.py.
"""

import json
import sys
from pathlib import Path

HERE = Path(__file__).parent
NAMES = {"bos_token": "<\uff5cbegin\u2581of\u2581sentence\uff5c>",
         "eos_token": "<\uff5cend\u2581of\u2581sentence\uff5c>"}

TEMPLATES = {
    "blanks": (
        "{%- for m in messages %}\n  {% if m.role == 'user' %}\n    U: {{ m.content }}\n"
        "  {%- else %}\n\n    O: {{ m['content'] | trim }}\n  {% endif %}\n{% endfor %}\nend\n"),
    "tools": (
        "{% if tools is none %}none{% else %}{{ tools | tojson }}\n{{ tools | tojson(indent=2) }}\n"
        "{{ tools | tojson(ensure_ascii=true, separators=(',', ':'), sort_keys=true) }}\n"
        "{% for tool in tools %}{% for key, held in tool.function.items() %}{{ key }}={{ held }};"
        "{% endfor %}{% endfor %}{% endif %}{{ documents is none }}{{ eos_token }}"
        "{% for m in messages %}{{ m.content }}{% endfor %}"),
    "generation": (
        "{% for m in messages %}[{{ m.role }}]{% if m.role == 'assistant' %}{% generation %}\n"
        "{% set said = m.content %}{{ said }}{{ eos_token }}\n{% endgeneration %}{% else %}"
        "{{ m.content }}{% endif %}{{ said }}{% endfor %}{% if add_generation_prompt %}"
        "[assistant]{% endif %}"),
    "loops": (
        "{% set seen = namespace(last=-1) %}{% macro mark(name) %}<|{{ name }}|>{% endmacro %}"
        "{% for m in messages[::-1] %}{% if m.role == 'user' %}"
        "{% set seen.last = messages | length - 1 - loop.index0 %}{% break %}{% endif %}"
        "{% endfor %}{% for m in messages %}{% if m.role == 'system' and not loop.first %}"
        "{% continue %}{% endif %}{{ mark(m.role) }}{% if loop.index0 == seen.last %}*{% endif %}"
        "{{ m.content.split('</think>')[-1].lstrip('\\n') }}{{ '' if loop.last else '|' }}"
        "{% endfor %}{{ bos_token }}{{ unknown }}"),
    "strict": (
        "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('roles must alternate') }}{% endif %}{{ m.content }}{% endfor %}"),
    "flags": (
        "{% if thinking is defined and thinking %}<think>\n{% elif enable_thinking is false %}"
        "<think></think>{% else %}plain{% endif %}{{ messages | selectattr('role', 'equalto', "
        "'user') | map(attribute='content') | join(',') }}"),
}


def of(*said: str) -> list[dict[str, str]]:
    """A conversation; each text begins with its role's letter."""
    roles = {"s": "system", "u": "user", "a": "assistant"}
    return [{"role": roles[text[0]], "content": text[2:]} for text in said]


TOOLS = [{"type": "function", "function": {
    "name": "weather", "description": "Weather <today> & 'tomorrow' in \"K\u00f6ln\"",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}}]
CONVERSATIONS = [
    of("u Hi"), of("s Be brief.", "u Hi"), of("u a", "a b", "u  c \n"), of("s 1", "s 2", "u a"),
    of("s x", "u a\n\nb", "a <think>hm\n</think>\n\nb", "u <\uff5cUser\uff5c> \u00fc \u2028"),
    of("u a", "u b"), of("a a", "u b"),
]
FLAGS = [{}, {"thinking": True}, {"thinking": False}, {"enable_thinking": False},
         {"tools": TOOLS}]


def rendered(source: str, messages: list, kwargs: dict) -> str | None:
    """Render as transformers' apply_chat_template does; None where that refuses."""
    import jinja2
    from transformers.utils.chat_template_utils import render_jinja_template

    try:
        return render_jinja_template([messages], chat_template=source, add_generation_prompt=True,
                                     **NAMES, **kwargs)[0][0]
    except (jinja2.TemplateError, TypeError):
        return None


def main(r1: Path) -> None:
    """Write the file."""
    import transformers

    templates = {"deepseek-r1": json.loads(r1.read_text())["chat_template"], **TEMPLATES}
    cases = [[name, messages, kwargs, rendered(source, messages, kwargs)]
             for name, source in templates.items() for messages in CONVERSATIONS
             for kwargs in FLAGS]
    made = {"by": f"transformers {transformers.__version__}", "names": NAMES,
            "licences": {"deepseek-r1": "MIT License, Copyright (c) 2023 DeepSeek"},
            "templates": templates, "cases": cases}
    lines = ",\n".join(json.dumps(case) for case in made.pop("cases"))
    head = json.dumps(made, indent=1).removesuffix("\n}")
    (HERE / "chat_templates.json").write_text(f'{head},\n "cases": [\n{lines}\n]}}\n')


if __name__ == "__main__":
    main(Path(sys.argv[1]))
