"""A template that writes today's date: the date is an input, and the prompts of a run are those of its first day."""

from datetime import datetime

import pytest

from nemo_desta.core.prompting import PromptBuilder
from nemo_desta.errors import RowError
from nemo_desta.testing.data import TEMPLATES, tiny_tokenizer

# As Llama 3.1 and 3.2 have it, white space control included.
DATED = (
    "\n  {%- if not date_string is defined %}\n    {%- if strftime_now is defined %}\n"
    "        {%- set date_string = strftime_now('%d %b %Y') %}\n    {%- endif %}\n  {%- endif %}\n"
    "{{- 'Today: ' + date_string + '\\n' }}" + TEMPLATES["chatml"]
)
ASKED = [{"role": "user", "content": "Hi."}]


def builder(template: str, date: datetime | None) -> PromptBuilder:
    tokenizer = tiny_tokenizer("chatml")
    tokenizer.chat_template = template
    return PromptBuilder(tokenizer, date=date)


def test_a_given_date_is_written_whatever_the_day_is() -> None:
    frozen = builder(DATED, datetime(2020, 2, 1)).render(ASKED)
    assert "Today: 01 Feb 2020\n" in frozen
    today = builder(DATED, None).render(ASKED)
    assert frozen.replace("01 Feb 2020", datetime.now().strftime("%d %b %Y")) == today, "nothing else changes"


@pytest.mark.parametrize(
    "template", ['\n\n  {% if true %}x{% endif %}{{ strftime_now("%Y") }}', "{{strftime_now('%Y')}}"]
)
def test_white_space_at_the_beginning_stays(template: str) -> None:
    date = datetime.now()
    assert builder(template + "{{ messages[0].content }}", date).render(ASKED) == builder(
        template + "{{ messages[0].content }}", None
    ).render(ASKED)


def test_a_macro_and_a_variable_get_the_date_too() -> None:
    template = (
        "{% set how = '%Y' %}{% macro day(x) %}{{ strftime_now('%m') }}{% endmacro %}"
        "{{ day(1) }}/{{ strftime_now(how) }}{{ messages[0].content }}"
    )
    assert builder(template, datetime(2020, 2, 1)).render(ASKED) == "02/2020Hi."


def test_a_format_that_is_no_literal_is_refused_not_guessed() -> None:
    template = "{{ strftime_now('%' ~ 'Y') }}{{ messages[0].content }}"
    with pytest.raises(RowError, match="no literal date format"):
        builder(template, datetime(2020, 2, 1)).render(ASKED)


def test_a_template_without_a_clock_is_rendered_as_before() -> None:
    plain, dated = builder(TEMPLATES["chatml"], None), builder(TEMPLATES["chatml"], datetime(2020, 2, 1))
    assert plain.render(ASKED) == dated.render(ASKED) and not dated.reads_clock
