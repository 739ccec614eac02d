"""Render untrusted chat templates in transformers' sandbox, with limits on work and memory.

The sandbox keeps a template from running Python, but not from looping for hours or allocating all memory. Here every
block that a template enters and every value that it creates is charged to a budget, so such a template ends with
`TemplateLimit` after a second or two, in any thread and process. The budget counts work, not time: a template that is
refused on one machine is refused on all. Filters, functions and variables are transformers' own.
"""

import functools
import re
import threading
from collections.abc import Callable, ItemsView, Iterable, Iterator, KeysView, Mapping, Sequence, ValuesView
from typing import Any

from jinja2 import TemplateError, nodes
from jinja2.compiler import CodeGenerator, Frame, operators
from jinja2.environment import Template
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from nemo_desta.errors import ConfigError

#: Limits: characters of a template (the longest published ones have 30,000); template nodes that one rendering may
#: execute; characters and items of one value; the same of all values together.
MAX_TEMPLATE = 1 << 18
MAX_STEPS = 2_000_000
MAX_SIZE = 1 << 23
MAX_TOTAL = 1 << 27
#: The cost of visiting one item of a list, in nodes.
ITEM = 2
#: Scanning a text (``in``, ``.strip()``) costs one part in so many of creating it.
SCAN = 4
#: Limits: numbers that set a length or width; input of filters whose time is quadratic in it.
MAX_NUMBER = 100_000
MAX_SLOW = 1 << 16

SIZED_FILTERS = {"batch", "center", "indent", "round", "slice", "tojson", "truncate", "wordwrap"}
SLOW_FILTERS = {"pprint", "striptags", "urlize", "wordwrap", "xmlattr"}
LIGHT_FILTERS = {"count", "d", "default", "first", "last", "length"}
COMPARING_TESTS = {"eq", "==", "equalto", "ne", "!=", "gt", ">", "greaterthan", "ge", ">=", "lt", "<", "lessthan"}
COMPARING_TESTS |= {"le", "<=", "in"}
#: Text methods whose time is the product of two lengths: searches from the end, and sets of characters.
PRODUCT_METHODS = {"lstrip", "rfind", "rindex", "rpartition", "rsplit", "rstrip", "strip"}
#: Arguments that Jinja adds to calls in loops and blocks and takes out before the function is called.
JINJAS_OWN = {"_loop_vars", "_block_vars"}
_CONTAINERS = (list, tuple, set, frozenset, Mapping, KeysView, ValuesView, ItemsView)
_SCALARS = (int, float, bool, type(None))
_PERCENT = re.compile(r"%(?:\([^)]*\))?[-#0 +]*(\d+|\*)?(?:\.(\d+|\*))?")
_NUMBER = re.compile(r"\d+")


class TemplateLimit(ConfigError, TemplateError):
    """A chat template that exceeds a limit of work or memory."""


def render_chat(tokenizer: Any, messages: Sequence[Mapping[str, Any]], **variables: Any) -> str:
    """``tokenizer.apply_chat_template(messages, tokenize=False, **variables)``, with limits.

    Raises:
        TemplateLimit: the template exceeds a limit; the message names the tokenizer.
        jinja2.TemplateError: the template refuses the messages, or is broken.
    """
    from transformers import PreTrainedTokenizerBase

    if type(tokenizer).apply_chat_template is not PreTrainedTokenizerBase.apply_chat_template:
        return tokenizer.apply_chat_template(messages, tokenize=False, **variables)  # its own, not a template's
    name = f"the chat template of '{tokenizer.name_or_path}'"
    text = tokenizer.get_chat_template(variables.pop("chat_template", None), variables.get("tools"))
    given = {"tools": None, "documents": None, "add_generation_prompt": False}
    given |= {**tokenizer.special_tokens_map, **variables, "messages": list(messages)}
    try:
        return _render(text, given)
    except (TemplateLimit, MemoryError, RecursionError, SyntaxError) as error:
        reason = error if isinstance(error, TemplateLimit) else type(error).__name__
        raise TemplateLimit(
            f"{name} is stopped: {reason}. A template that formats messages needs a small part of that; use "
            "the template that the LLM's authors publish"
        ) from error
    except TemplateError as error:  # its message may come from the template and have any length
        if len(str(error)) < 1000:
            raise
        raise TemplateError(f"{error!s:.1000}...") from error


def _render(text: str, variables: Mapping[str, Any]) -> str:
    if len(text) > MAX_TEMPLATE:
        raise TemplateLimit(f"it has {len(text):,} characters, the limit is {MAX_TEMPLATE:,}")
    _left.steps, _left.size = MAX_STEPS, MAX_TOTAL
    template = _compiled(text)
    return "".join(template.root_render_func(template.new_context(dict(variables))))


class _Budget(threading.local):
    steps = 0
    size = 0


_left = _Budget()


def tick(count: int) -> None:
    """Charge work, in nodes of the template."""
    _left.steps -= count
    if _left.steps < 0:
        raise TemplateLimit(f"it works through more than {MAX_STEPS:,} nodes")


def weigh(value: Any) -> int:
    """Charge the characters and items of a value, nested ones included; returns their number."""
    size = len(value) if type(value) is str else 1 if value is None or type(value) is bool else _deep(value)
    _check(size)
    _left.size -= size
    if _left.size < 0:
        raise TemplateLimit(f"it makes more than {MAX_TOTAL:,} characters and items")
    return size


def _deep(value: Any) -> int:
    """Characters and items of a nested value. A repeated object counts each time, as it does when rendered."""
    size, open_values = 0, [value]
    while open_values:
        item = open_values.pop()
        if isinstance(item, str | bytes | range):
            size += 1 + len(item)
            continue
        if isinstance(item, Namespace):
            item = item._Namespace__attrs
        if not isinstance(item, _CONTAINERS):
            size += 1
            continue
        inside = [*item.keys(), *item.values()] if isinstance(item, Mapping) else item
        tick(ITEM * (1 + len(inside)))
        size += 1 + len(inside)
        for one in inside:
            if type(one) is str:
                size += len(one)
            elif type(one) not in _SCALARS:
                open_values.append(one)
        _check(size)
    return size


def _check(size: float) -> None:
    if size > MAX_SIZE:
        raise TemplateLimit(f"it makes a value of more than {MAX_SIZE:,} characters or items")


def _scan(text: Any) -> Any:
    """Charge a scan of a text."""
    if isinstance(text, str):
        _left.size -= len(text) // SCAN
        if _left.size < 0:
            weigh("")
    return text


def _kept(value: Any) -> Any:
    weigh(value)
    return value


def _joined(values: Iterable[Any]) -> str:
    return _kept("".join([str(_kept(value)) for value in values]))


class _Generator(CodeGenerator):
    """Compiles templates so that entering a block and creating a value is charged."""

    def blockvisit(self, body: Any, frame: Frame) -> None:
        body = list(body)
        self.writeline(f"environment.tick({1 + sum(map(_num_nodes, body))})")
        super().blockvisit(body, frame)

    def _charged(self, charge: str, visit: Callable[[Any, Frame], None], node: Any, frame: Frame) -> None:
        self.write(f"environment.{charge}(")
        visit(node, frame)
        self.write(")")

    def visit_Tuple(self, node: nodes.Tuple, frame: Frame) -> None:
        if node.ctx == "load":
            self._charged("kept", super().visit_Tuple, node, frame)
        else:  # names that a loop unpacks to
            super().visit_Tuple(node, frame)

    def visit_List(self, node: nodes.List, frame: Frame) -> None:
        self._charged("kept", super().visit_List, node, frame)

    def visit_Dict(self, node: nodes.Dict, frame: Frame) -> None:
        self._charged("kept", super().visit_Dict, node, frame)

    def visit_Getitem(self, node: nodes.Getitem, frame: Frame) -> None:
        if isinstance(node.arg, nodes.Slice):
            self._charged("kept", super().visit_Getitem, node, frame)
        else:
            super().visit_Getitem(node, frame)

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:
        self.write("environment.joined((")
        for part in node.nodes:
            self.visit(part, frame)
            self.write(", ")
        self.write("))")

    def visit_Compare(self, node: nodes.Compare, frame: Frame) -> None:
        operands = [node.expr, *(operand.expr for operand in node.ops)]
        light = len(operands) == 2 and any(isinstance(operand, nodes.Const) for operand in operands)
        self.write("(")
        for sign, operand in zip(["", *(operators[operand.op] for operand in node.ops)], operands, strict=True):
            self.write(f" {sign} ")
            if not light:
                self._charged("kept", self.visit, operand, frame)
            elif sign.endswith("in"):
                self._charged("scan", self.visit, operand, frame)
            else:
                self.visit(operand, frame)
        self.write(")")


def _num_nodes(node: nodes.Node) -> int:
    own = len(node.data) // SCAN if isinstance(node, nodes.TemplateData) else 0
    return 1 + own + sum(map(_num_nodes, node.iter_child_nodes()))


class _Environment(ImmutableSandboxedEnvironment):
    code_generator_class = _Generator
    intercepted_binops = frozenset({"+", "*", "**", "%"})
    tick, scan, kept, joined = staticmethod(tick), staticmethod(_scan), staticmethod(_kept), staticmethod(_joined)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if type(left) is int and type(right) is int:
            if operator in ("*", "**"):
                bits = abs(right) * left.bit_length() if operator == "**" else left.bit_length() + right.bit_length()
                _check(bits * MAX_SIZE // 4096)
            return super().call_binop(context, operator, left, right)
        if operator == "*":
            times = [value for value in (left, right) if isinstance(value, int)]
            _check(weigh(left) * weigh(right) * max(0, *times) if times else 0)
        if operator == "%" and isinstance(left, str):
            _check_percent(left, right)
        return _kept(super().call_binop(context, operator, left, right))

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: B902 (as Jinja's own)
        tick(20)
        method = getattr(__obj, "__wrapped__", __obj)  # Jinja wraps str.format
        args = tuple(_whole(value) for value in args)
        named = {name: value for name, value in kwargs.items() if name not in JINJAS_OWN}
        sizes = [weigh(value) for value in (*args, *named.values())]
        for value in (*args, *named.values()):
            if isinstance(value, int):
                _check(abs(value))
        _check_method(getattr(method, "__name__", ""), _scan(getattr(method, "__self__", None)), args, named, sizes)
        return _kept(super().call(__context, __obj, *args, **kwargs))


def _check_method(name: str, text: Any, args: Sequence[Any], kwargs: Mapping[str, Any], sizes: Sequence[int]) -> None:
    """Check calls whose output or time can be far larger than their input."""
    if name == "strftime_now":  # a format's fields may be padded
        _check(256 * sum(sizes))
    if not isinstance(text, str | bytes):
        return
    if name == "replace":
        _check_replace(text, *args, **kwargs)
    elif name == "join":
        _check(sum(sizes) + len(text) * sum(len(value) for value in args if hasattr(value, "__len__")))
    elif name == "expandtabs":
        _check(len(text) * max([8, *(value for value in (*args, *kwargs.values()) if isinstance(value, int))]))
    elif name == "translate":
        _check(len(text) * sum(sizes))
    elif name in ("format", "format_map"):
        if re.search(r"\{[^{}]*\{", text):
            raise TemplateLimit("it formats with a width that is a field itself")
        _check((1 + text.count("{")) * (1 + sum(sizes)) + _widths(_NUMBER.findall(text)))
    elif name in PRODUCT_METHODS:
        _check(len(text) * sum(sizes) / 128)


def _check_replace(text: Any, old: Any, new: Any, count: int | None = -1) -> None:
    if isinstance(old, str) and isinstance(new, str):
        _check(len(text) + text.count(old) * len(new))


def _check_percent(form: str, values: Any) -> None:
    found = [number for pair in _PERCENT.findall(form) for number in pair if number]
    if "*" in found:
        raise TemplateLimit("it formats with a width that is a value itself")
    _check(len(form) + form.count("%") * weigh(values) + _widths(found))


def _widths(numbers: Iterable[str]) -> float:
    return sum(int(number) if len(number) < 9 else MAX_SIZE + 1 for number in numbers)


def _whole(value: Any) -> Any:
    """The items of an iterator as a list, because its size must be known before it is used."""
    return list(value) if isinstance(value, Iterator) else value


def _filter(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter of Jinja or transformers, charged."""
    place = 1 if hasattr(function, "jinja_pass_arg") else 0

    @functools.wraps(function)
    def charged(*args: Any, **kwargs: Any) -> Any:
        tick(20)
        if name in LIGHT_FILTERS:
            return function(*args, **kwargs)
        args = (*args[:place], *(_whole(value) for value in args[place:]))
        value, *options = args[place:]
        options += kwargs.values()
        size, rest = weigh(value), sum(weigh(option) for option in options)
        numbers = [option for option in options if isinstance(option, int)]
        if name in SLOW_FILTERS and size + rest > MAX_SLOW:
            raise TemplateLimit(f"it gives the filter '{name}' {size + rest:,} characters, the limit is {MAX_SLOW:,}")
        if name in SIZED_FILTERS and any(abs(number) > MAX_NUMBER for number in numbers):
            raise TemplateLimit(f"it gives the filter '{name}' the number {max(numbers)}, the limit is {MAX_NUMBER:,}")
        if name == "replace":
            _check_replace(str(value), *args[place + 1 :], **kwargs)
        elif name == "join":
            _check(size + rest * (len(value) if hasattr(value, "__len__") else 1))
        elif name == "format":
            _check_percent(str(value), [*options])
        elif name == "indent":
            _check(size + (2 + str(value).count("\n")) * max([rest, *numbers]))
        elif name == "tojson" and options:
            _check(size * max([1, rest - len(options), *numbers]) * min(size, 1000) / SCAN)
        elif name == "sum" and any(not isinstance(option, int | float | str) for option in options):
            raise TemplateLimit("it adds up lists")
        return _kept(function(*args, **kwargs))

    return charged


def _test(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def charged(*args: Any) -> Any:
        return function(*map(_kept, args))

    return charged


@functools.lru_cache(maxsize=1)
def _environment() -> _Environment:
    """transformers' sandbox (options, extensions, filters, functions) with our budget."""
    from transformers.utils.chat_template_utils import _compile_jinja_template

    theirs = _compile_jinja_template("").environment
    ours = _Environment(
        trim_blocks=theirs.trim_blocks,
        lstrip_blocks=theirs.lstrip_blocks,
        extensions=[type(extension) for extension in theirs.extensions.values()],
        finalize=_kept,
        optimized=False,
    )
    ours.filters = {name: _filter(name, function) for name, function in theirs.filters.items()}
    ours.tests = {name: _test(test) if name in COMPARING_TESTS else test for name, test in theirs.tests.items()}
    ours.globals = {name: value for name, value in theirs.globals.items() if name != "lipsum"}
    return ours


@functools.lru_cache(maxsize=16)
def _compiled(text: str) -> Template:
    return _environment().from_string(text)
