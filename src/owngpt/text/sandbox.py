"""A Jinja environment for templates that strangers wrote: no way out of it, and no way to run for ever or fill the memory.

jinja2's own sandbox keeps a template from Python's internals and from changing what it is given. It does not keep one
from looping over a product of ranges or from doubling a string sixty times. Here everything that a template does is paid
from a budget: loops by the item, calls, and text by the character, always before the memory is taken.
"""

from __future__ import annotations

import functools
import re
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from jinja2 import nodes
from jinja2.compiler import CodeGenerator
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.runtime import LoopContext
from jinja2.sandbox import ImmutableSandboxedEnvironment, SecurityError
from jinja2.visitor import NodeTransformer

BUDGET = 20_000_000
"""Characters that one rendering may handle, a step counting as :data:`STEP` of them; real templates take under 1 % of it."""
STEP = 20
SECONDS = 5.0
LARGEST_NUMBER_ARGUMENT = 10_000
"""Widths, counts and the like that a template may pass to a filter or a string method."""
LARGEST_INTEGER_BITS = 4096

_WIDE_FORMAT = re.compile(r"\d{5}|\*")


class BudgetError(SecurityError):
    """The template asks for more than any real one."""


class Budget:
    """What one rendering has left."""

    def __init__(self, characters: int = BUDGET, seconds: float = SECONDS) -> None:
        self.left = characters
        self.seconds = seconds
        self.deadline = time.monotonic() + seconds

    def pay(self, characters: int) -> None:
        """Take off the cost of what is about to happen.

        :raises BudgetError: there is not enough left.
        """
        self.left -= characters
        if self.left < 0:
            raise BudgetError(f"it needs more than {BUDGET:,} steps and characters")
        if time.monotonic() > self.deadline:
            raise BudgetError(f"it runs for more than {self.seconds:g} seconds")


_budget: ContextVar[Budget | None] = ContextVar("budget", default=None)


@contextmanager
def spending(budget: Budget) -> Iterator[None]:
    """Everything that a sandboxed template does inside the block is paid from this budget."""
    token = _budget.set(budget)
    try:
        yield
    finally:
        _budget.reset(token)


def pay(characters: int) -> None:
    """Pay from the budget of the rendering that is going on."""
    budget = _budget.get()
    if budget is not None:
        budget.pay(characters)


class Metering(Extension):
    """Helpers that the rewritten template calls."""

    def counted(self, items: Any) -> Any:
        """What a loop runs over, paid in advance; what has no length is gathered first, an item at a time."""
        if hasattr(items, "__len__"):
            pay(STEP * (len(items) + 1))
            return items
        return _gathered(items)

    def concatenated(self, *items: Any) -> str:
        """The operator ``~``."""
        texts = [str(item) for item in items]
        pay(STEP + sum(map(len, texts)))
        return "".join(texts)


class _Rewriter(NodeTransformer):
    """Sends loops and concatenations through :class:`Metering`."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        self.generic_visit(node)
        node.iter = _metered("counted", [node.iter])
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return _metered("concatenated", node.nodes).set_lineno(node.lineno)


def _metered(name: str, arguments: Any) -> nodes.Call:
    return nodes.Call(nodes.ExtensionAttribute(Metering.identifier, name), arguments, [], None, None)


class _MeteredGenerator(CodeGenerator):
    def visit_Template(self, node: nodes.Template, frame: Any = None) -> None:
        node = _Rewriter().visit(node)
        node.set_environment(self.environment)
        super().visit_Template(node, frame)


class GenerationBlocks(Extension):
    """``{% generation %}`` … ``{% endgeneration %}``: marks what the assistant said, as transformers does."""

    tags = {"generation"}  # noqa: RUF012 - jinja's own declaration

    def parse(self, parser: Parser) -> nodes.Node:
        """Turn the block into a call that notes where its text stands."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("note"), [], [], body).set_lineno(line)

    def note(self, caller: Callable[[], str]) -> str:
        """The block's text; its place goes to whoever listens."""
        text = caller()
        listener = generation_listener.get()
        if listener is not None:
            listener(len(text))
        return text


generation_listener: ContextVar[Callable[[int], None] | None] = ContextVar("generation_listener", default=None)


class BoundedSandbox(ImmutableSandboxedEnvironment):
    """See the top of this file."""

    code_generator_class = _MeteredGenerator
    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self, **options: Any) -> None:
        super().__init__(optimized=False, finalize=_paid_output, **options)
        self.add_extension(Metering)
        del self.globals["lipsum"]  # no use for it, and it writes without bound
        self.filters = {name: _paid_filter(name, function) for name, function in self.filters.items()}

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Arithmetic whose result could be huge."""
        if operator == "*":
            _check_product(left, right)
        elif operator == "**":
            _check_power(left, right)
        elif operator == "%" and isinstance(left, str):
            _check_format(left, right)
        elif operator == "+":
            pay(STEP + _size(left) + _size(right))
        return super().call_binop(context, operator, left, right)

    def call(self, context: Any, callee: Any, *args: Any, **kwargs: Any) -> Any:
        """Calls of functions, macros and methods."""
        if callee is range or isinstance(callee, LoopContext):
            pay(STEP * (_size(args[0]) if args else 1))
        owner = getattr(getattr(callee, "__wrapped__", callee), "__self__", None)  # the sandbox wraps str.format
        if isinstance(owner, str):
            _check_text_call(callee.__name__, owner, args, kwargs)
        pay(STEP + _size(owner) // 32)
        result = super().call(context, callee, *args, **kwargs)
        pay(_size(result))
        return result


def _gathered(items: Iterable[Any]) -> list[Any]:
    """What a generator yields, paid as it comes: a filter that reads it whole could not be stopped."""
    gathered = []
    for item in items:
        pay(STEP + _size(item))
        gathered.append(item)
    return gathered


def _size(value: Any) -> int:
    return len(value) if isinstance(value, str | list | tuple | dict) else 0


def _paid_output(value: Any) -> Any:
    text = value if isinstance(value, str) else str(value)
    pay(STEP + len(text))
    return text


def _paid_filter(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter that pays for what it reads and what it makes."""

    @functools.wraps(function)
    def paid(*args: Any, **kwargs: Any) -> Any:
        before = args[:1] if hasattr(function, "jinja_pass_arg") else ()
        values = args[len(before) :]
        subject = values[0] if values else ""
        if hasattr(subject, "__next__"):
            subject = _gathered(subject)
            args = (*before, subject, *values[1:])
        pay(STEP + _size(subject))
        _check_text_call(name, subject, values[1:], kwargs)
        result = function(*args, **kwargs)
        pay(_size(result))
        return result

    return paid


def _check_text_call(name: str, subject: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Pay for, or refuse, a method or filter whose result may be far larger than what it is given."""
    for number in (*args, *kwargs.values()):
        if isinstance(number, int) and abs(number) > LARGEST_NUMBER_ARGUMENT:
            raise BudgetError(f"it passes {number} to {name}")
    if name == "sum" and any(isinstance(value, list | tuple | str) for value in (*args[1:], *kwargs.values())):
        raise BudgetError("it sums lists")
    if name in ("format", "format_map") and isinstance(subject, str):
        _check_format(subject, args)
    elif name == "replace" and isinstance(subject, str):
        old, new = ([str(value) for value in (*args, *kwargs.values())] + ["", ""])[:2]
        pay(subject.count(old) * len(new))
    elif name == "join":
        is_method = isinstance(subject, str) and bool(args)
        glue, items = (subject, args[0]) if is_method else (args[0] if args else "", subject)
        pay(_size(items) * len(str(glue)) + (sum(map(_size, items)) if isinstance(items, list | tuple) else 0))


def _check_format(text: str, values: Any) -> None:
    if _WIDE_FORMAT.search(text):
        raise BudgetError("it formats with a width of many digits")
    values = values if isinstance(values, tuple) else (values,)
    pay(len(text) * (1 + sum(_size(value) for value in values)))


def _check_product(left: Any, right: Any) -> None:
    if isinstance(left, int) and isinstance(right, int):
        _check_bits(left.bit_length() + right.bit_length())
    elif isinstance(left, int) or isinstance(right, int):
        count, items = (left, right) if isinstance(left, int) else (right, left)
        pay(STEP + max(count, 0) * _size(items))


def _check_power(left: Any, right: Any) -> None:
    if isinstance(left, int) and isinstance(right, int):
        _check_bits(left.bit_length() * max(right, 0))


def _check_bits(bits: int) -> None:
    if bits > LARGEST_INTEGER_BITS:
        raise BudgetError(f"it computes an integer of {bits:,} bits")
