"""Chat templates of strangers: kept in the sandbox, stopped when they loop or allocate, and else rendered as ever."""

import threading

import pytest
import torch
from jinja2 import TemplateError

from nemo_desta.core import template_limits
from nemo_desta.core.prompting import PromptBuilder
from nemo_desta.core.template_limits import TemplateLimit, render_chat
from nemo_desta.errors import ConfigError, RowError
from nemo_desta.testing.data import TEMPLATES, tiny_tokenizer

MESSAGES = [
    {"role": "system", "content": " Be {brief} %s. "},
    {"role": "user", "content": "What is <b>it</b>?\n\ttwo ü 你好"},
    {"role": "assistant", "content": "<think>\nhm\n</think>\n\nA dog."},
    {"role": "user", "content": "And now?"},
]
#: By what it does.
HUNGRY = {
    "loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "loops3": "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}x"
    "{% endfor %}{% endfor %}{% endfor %}",
    "filterloop": "{% for a in range(99999) if (range(99999)|list|length) > 0 %}{% endfor %}",
    "filterloop2": "{% for a in range(99999) if range(99999) %}{% for b in range(99999) if false %}{% endfor %}"
    "{% endfor %}",
    "mul": "{{ 'a' * 10**10 }}",
    "mullist": "{{ ([1] * 10**9)|length }}",
    "square": "{% set ns = namespace(n=10) %}{% for i in range(60) %}{% set ns.n = ns.n * ns.n %}{% endfor %}",
    "percent": "{{ '%10000000000d' % 1 }}",
    "percent2": "{{ '%*d' % (10000000000, 1) }}",
    "percent3": "{{ ('%s' * 100000) % (('a' * 1000000,) * 100000) }}",
    "percentkey": "{{ ('%(a)s' * 100000) % {'a': 'a' * 1000000} }}",
    "format": "{{ '{:>10000000000}'.format(1) }}",
    "format2": "{{ '{:{w}}'.format(1, w=10**10) }}",
    "format3": "{{ ('{0}' * 100000).format('a' * 1000000) }}",
    "formatfilter": "{{ '%10000000000d'|format(1) }}",
    "double": "{% set ns = namespace(s='a') %}{% for i in range(60) %}{% set ns.s = ns.s + ns.s %}{% endfor %}",
    "tilde": "{% set ns = namespace(s='a') %}{% for i in range(60) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}",
    "setblock": "{% set ns = namespace(s='a') %}{% for i in range(60) %}{% set x %}{{ ns.s }}{{ ns.s }}"
    "{% endset %}{% set ns.s = x %}{% endfor %}",
    "laughs": "{% set ns = namespace(l=[1]) %}{% for i in range(60) %}{% set ns.l = [ns.l, ns.l] %}"
    "{% endfor %}{{ ns.l }}",
    "laughsdict": "{% set ns = namespace(l=1) %}{% for i in range(60) %}{% set ns.l = {'a': ns.l, 'b': ns.l} %}"
    "{% endfor %}{{ ns.l|tojson }}",
    "tuplehash": "{% set ns = namespace(l=1) %}{% for i in range(60) %}{% set ns.l = (ns.l, ns.l) %}"
    "{% endfor %}{{ {ns.l: 1} }}",
    "nslaughs": "{% set ns = namespace(l=1) %}{% for i in range(60) %}{% set ns.l = namespace(a=ns.l, b=ns."
    "l) %}{% endfor %}{{ ns.l }}",
    "nsself": "{% set ns = namespace(l=1) %}{% set ns.l = ns %}{{ ns }}",
    "macro": "{% macro f(n) %}{{ f(n) }}{{ f(n) }}{% endmacro %}{{ f(1) }}",
    "macro2": "{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}{{ f(100) }}",
    "block": "{% block a %}{{ self.a() }}{{ self.a() }}{% endblock %}",
    "center": "{{ 'a'|center(10**9) }}",
    "indent": "{{ ('a\n' * 1000000)|indent(100000) }}",
    "indentstr": "{{ ('a\n' * 1000000)|indent('b' * 1000000) }}",
    "ljust": "{{ 'a'.ljust(10**10) }}",
    "zfill": "{{ 'a'.zfill(10**10) }}",
    "tabs": "{{ ('\t' * 1000000).expandtabs(100000) }}",
    "replace": "{{ ('a' * 1000000).replace('a', 'b' * 1000000) }}",
    "replacef": "{{ ('a' * 1000000)|replace('a', 'b' * 1000000) }}",
    "join": "{{ (['a' * 100000] * 1000)|join('b' * 1000000) }}",
    "joinm": "{{ ('b' * 1000000).join(['a'] * 1000000) }}",
    "mapdefault": "{{ range(99999)|map(attribute='x', default='a' * 1000000)|join }}",
    "maplist": "{{ range(99999)|map(attribute='x', default='a' * 1000000)|list|length }}",
    "joingen": "{{ ''.join(range(99999)|map(attribute='x', default='a' * 1000000)) }}",
    "tojson": "{{ ([[]] * 1000000)|tojson(indent=100000) }}",
    "tojson2": "{{ {'a': 1}|tojson(separators=('a' * 1000000, 'b' * 8000000)) }}",
    "sum": "{{ ([range(99999)|list] * 50)|sum(start=[]) }}",
    "batch": "{{ [1]|batch(10**9, 0)|list }}",
    "slice": "{{ [1]|slice(10**9)|list }}",
    "bytes": "{{ (5).to_bytes(10**10, 'big') }}",
    "translate": "{{ ('a' * 1000000).translate({97: 'b' * 1000000}) }}",
    "rfind": "{{ ('a' * 8000000).rfind('b' + 'a' * 4000000) }}",
    "strip": "{{ ('a' * 4000000).strip('bcdefghijk' * 400000 + 'a') }}",
    "slices": "{% set s = 'a' * 8000000 %}{% for i in range(99999) %}{% set x = s[1:] %}{% endfor %}",
    "contains": "{% set s = 'a' * 8000000 %}{% for i in range(99999) %}{% if 'b' in s %}{% endif %}{% endfor %}",
    "upper": "{% set s = 'a' * 8000000 %}{% for i in range(99999) %}{% set x = s|upper %}{% endfor %}",
    "method": "{% set s = 'a' * 8000000 %}{% for i in range(99999) %}{% set x = s.upper() %}{% endfor %}",
    "method2": "{% set s = 'a' * 8000000 %}{% for i in range(99999) %}{% set x = s.isalpha() %}{% endfor %}",
    "output": "{% set s = 'a' * 8000000 %}{% for i in range(99999) %}{{ s }}{% endfor %}",
    "output2": "{% set x %}{% set s = 'a' * 8000000 %}{% for i in range(99999) %}{{ s }}{% endfor %}{% endset %}",
    "striptags": "{{ ('<!--' * 1000000)|striptags }}",
    "sort": "{{ (['a' * 8000] * 1000)|sort|join|length }}{{ (['a'*80000]*1000)|sort }}",
    "strftime": "{{ strftime_now('%1000000000Y' * 1000000) }}",
    "eq": "{% set ns = namespace(l=1, m=1) %}{% for i in range(60) %}{% set ns.l = [ns.l, ns.l] %}"
    "{% set ns.m = [ns.m, ns.m] %}{% endfor %}{{ ns.l == ns.m }}",
    "const": "{{ 'a'|center(10**9) ~ 'b' }}",
    "long": "x" * 300_000,
    "text_in_a_loop": "{% for i in range(99999) %}" + "x" * 200_000 + "{% endfor %}",
    "nested_brackets": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "nested_blocks": "{% if 1 %}" * 500 + "{% endif %}" * 500,
}
#: What reaches out of the sandbox: an error, or nothing.
REACHING = [
    "{{ ''.__class__.__mro__ }}",
    "{{ messages.__class__.__base__.__subclasses__() }}",
    "{{ ''|attr('__class__') }}",
    "{% import 'os' as os %}",
    "{% include '/etc/passwd' %}",
    "{% extends '/etc/passwd' %}",
    "{{ '{0.__class__.__mro__}'.format('') }}",
    "{{ '{0[__class__]}'.format('') }}",
    "{{ raise_exception.__globals__ }}",
    "{{ strftime_now.__globals__['__builtins__'] }}",
    "{{ self.__init__.__globals__ }}",
    "{{ cycler.__init__.__globals__ }}",
    "{% set ns = namespace() %}{% set ns.__class__ = 1 %}",
    "{{ [1]|map(attribute='__class__')|list }}",
    "{{ messages.append(1) }}",
    "{{ namespace.__init__.__globals__ }}",
    "{{ lipsum.__globals__['os'].system('true') }}",
    "{{ joined('a') }}{{ kept(1) }}{{ environment }}",
]
#: What published templates are made of.
USUAL = [
    "{{ bos_token }}{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 1) %}"
    "{{ raise_exception('roles must alternate') if false else '' }}{% endif %}"
    "{{ '<' + m.role + '>\\n' + m['content'] | trim + '\\n' }}{% endfor %}",
    "{%- set ns = namespace(multi=true, last=messages|length - 1) %}{%- for message in messages[::-1] %}"
    "{%- set index = (messages|length - 1) - loop.index0 %}"
    "{%- if ns.multi and message.role == 'user' and not (message.content.startswith('<t>') and "
    "message.content.endswith('</t>')) %}{%- set ns.multi = false %}{%- set ns.last = index %}"
    "{%- endif %}{%- endfor %}"
    "{{ ns.last }}{% for m in messages %}{% if '</think>' in m.content %}"
    "{{ m.content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') }}{% endif %}{% endfor %}",
    "{% macro show(m, tag='b') -%}<{{ tag }}>{{ m.content|e }}{{ caller() if caller else '' }}</"
    "{{ tag }}>{%- endmacro %}"
    "{% for m in messages %}{{ show(m, tag='i') }}{% if loop.last %}{% break %}{% endif %}{% endfor %}"
    "{% call show(messages[0]) %}called{% endcall %}",
    "{% set users = messages|selectattr('role', 'equalto', 'user')|list %}{{ users|length }}"
    "{{ messages|map(attribute='content')|join('|') }}{{ messages|map(attribute='role')|unique|sort|join(',') }}"
    "{{ messages|rejectattr('role', 'in', ['user', 'system'])|list|tojson }}{{ messages[0]|tojson(indent=4) }}",
    "{{ '%s-%d' % ('a', 3) }}{{ '%.2f'|format(1.5) }}{{ '{}:{:>5}'.format(1, 'b') }}"
    "{{ 'a' ~ 1 ~ none ~ undefined_one }}"
    "{{ 'ab' * 3 }}{{ 2 ** 10 }}{{ [1] + [2] }}{{ {'a': [1, 2]}|items|list }}{{ (1, 'x') }}{{ 7 % 4 }}"
    "{{ 'x' in ['x'] }}",
    "{% for k, v in {'a': 1, 'b': 2}.items() %}{{ k }}{{ v }}{% endfor %}{{ messages|first }}"
    "{{ (messages|last).role }}"
    "{% set text %}{% for m in messages %}{{ m.role[:1]|upper }}{% endfor %}{% endset %}"
    "{{ text|indent(2) }}{{ text.title() }}"
    "{% filter upper %}up{% endfilter %}{{ 'a,b'.split(',')|join(' ') }}{{ 'x'.join(['1', '2']) }}"
    "{{ 'a b'.replace(' ', '_') }}",
    "{% for m in messages %}{% set word = 'a b' %}{{ word.replace(' ', '_').upper() }}{% endfor %}",
    "{% for m in messages if m.role != 'system' %}{{ loop.index }}{{ loop.cycle('o', 'e') }}{% else %}none{% endfor %}"
    "{% generation %}kept{% endgeneration %}{{ dict(a=1) }}{{ range(3)|list }}{{ strftime_now('%Y')|length }}"
    "{{ enable_thinking is defined and enable_thinking is false }}{{ messages[0].content is string }}"
    "{{ tools is none }}",
]


def with_template(template):
    tokenizer = tiny_tokenizer("thinking")
    tokenizer.chat_template = template
    return tokenizer


@pytest.mark.parametrize("name", HUNGRY)
def test_a_template_that_loops_or_allocates_is_stopped(name, monkeypatch):
    monkeypatch.setattr(template_limits, "MAX_STEPS", 200_000)  # a tenth of the limit, in a tenth of the time
    tokenizer = with_template(HUNGRY[name])
    tokenizer.name_or_path = "someone/model"
    with pytest.raises(TemplateLimit, match="the chat template of 'someone/model' is stopped: ") as caught:
        render_chat(tokenizer, MESSAGES)
    assert isinstance(caught.value, ConfigError) and isinstance(caught.value, TemplateError)


@pytest.mark.parametrize("template", REACHING)
def test_the_sandbox_holds(template):
    try:
        rendered = render_chat(with_template(template), [dict(m) for m in MESSAGES])
    except (TemplateError, TypeError):
        return
    assert rendered in ("", "[Undefined]")


@pytest.mark.parametrize("template", [*TEMPLATES.values(), *USUAL])
@pytest.mark.parametrize("start", [False, True])
def test_usual_templates_are_rendered_as_by_transformers(template, start):
    tokenizer = with_template(template)
    given = {"add_generation_prompt": start, "enable_thinking": False}
    expected = tokenizer.apply_chat_template(MESSAGES, tokenize=False, **given)
    assert render_chat(tokenizer, MESSAGES, **given) == expected
    assert render_chat(tokenizer, MESSAGES, **given) == expected  # and when the template is known already


def test_a_long_conversation_of_long_messages_is_rendered():
    messages = [{"role": role, "content": "word " * 800} for _ in range(250) for role in ("user", "assistant")]
    tokenizer = with_template(USUAL[1] + TEMPLATES["thinking"])
    assert render_chat(tokenizer, messages) == tokenizer.apply_chat_template(messages, tokenize=False)


def test_tools_and_further_variables_reach_the_template():
    tool = {"name": "f", "parameters": {"x": 1}}
    tokenizer = with_template("{{ tools|tojson }}{{ mine }}{{ eos_token }}")
    expected = tokenizer.apply_chat_template(MESSAGES, tokenize=False, tools=[tool], mine=5)
    assert render_chat(tokenizer, MESSAGES, tools=[tool], mine=5) == expected


def test_a_row_whose_prompt_does_not_end_is_a_bad_row():
    prompts = PromptBuilder(with_template(HUNGRY["loops"]))
    for use in (lambda: prompts.prompt([{"role": "user", "content": "x"}]), lambda: prompts.end_of_turn_id):
        with pytest.raises(RowError, match="is stopped: it works through more than") as caught:
            use()
        assert caught.value.reason == "template"


def test_what_a_template_says_is_cut():
    with pytest.raises(TemplateError) as caught:
        render_chat(with_template("{{ raise_exception('x' * 1000000) }}"), MESSAGES)
    assert len(str(caught.value)) < 1100


def test_threads_have_budgets_of_their_own():
    good, bad = with_template(USUAL[1]), with_template(HUNGRY["double"])
    expected = good.apply_chat_template(MESSAGES, tokenize=False)
    wrong = []

    def work(tokenizer):
        for _ in range(20):
            try:
                rendered = render_chat(tokenizer, MESSAGES)
            except TemplateLimit:
                rendered = None
            if rendered != (expected if tokenizer is good else None):
                wrong.append(rendered)

    threads = [threading.Thread(target=work, args=[tokenizer]) for tokenizer in [good, bad, good, bad]]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


class Rendered(torch.utils.data.Dataset):
    """Each item is what became of one template."""

    def __init__(self, templates):
        self.tokenizers = [with_template(template) for template in templates]

    def __len__(self):
        return len(self.tokenizers)

    def __getitem__(self, i):
        try:
            return render_chat(self.tokenizers[i], MESSAGES)
        except TemplateLimit as error:
            return f"{error}"


def test_limits_hold_in_workers_of_a_loader():
    template_limits.render_chat(with_template(USUAL[0]), MESSAGES)  # compiled before the workers are forked
    data = Rendered([USUAL[0], HUNGRY["double"]])
    good, bad = [item for batch in torch.utils.data.DataLoader(data, num_workers=1) for item in batch]
    assert good == data.tokenizers[0].apply_chat_template(MESSAGES, tokenize=False) and "is stopped" in bad
