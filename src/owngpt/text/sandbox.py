"""A Jinja environment for templates that strangers wrote: no way out of it, and no way to run for ever or fill the memory.

jinja2's own sandbox keeps a template from Python's internals and from changing what it is given. It does not keep one
from looping over a product of ranges or from doubling a string sixty times. Here everything that a template does is paid
from a budget: loops by the item, calls, comparisons, and text by the character, before the memory is taken.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from contextvars import ContextVar
from types import GeneratorType
from typing import Any

from jinja2 import nodes
from jinja2.compiler import CodeGenerator
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.runtime import LoopContext
from jinja2.sandbox import ImmutableSandboxedEnvironment, SecurityError
from jinja2.utils import Namespace, pass_context
from jinja2.visitor import NodeTransformer

from owngpt.text.budget import CALL, STEP, pay, price, weigh
from owngpt.text.growth import check_format, check_growth, check_power, check_product

_LIST_METHODS = frozenset({"count", "index", "copy"})
_METHODS: tuple[tuple[type, frozenset[str]], ...] = (
    (str, frozenset({
        "capitalize", "casefold", "center", "count", "endswith", "find", "format", "format_map", "index", "isalnum", "isalpha",
        "isascii", "isdecimal", "isdigit", "isidentifier", "islower", "isnumeric", "isprintable", "isspace", "istitle",
        "isupper", "join", "ljust", "lower", "lstrip", "partition", "removeprefix", "removesuffix", "replace", "rfind",
        "rindex", "rjust", "rpartition", "rsplit", "rstrip", "split", "splitlines", "startswith", "strip", "swapcase", "title",
        "upper", "zfill",
    })),
    (int, frozenset({"bit_length", "is_integer"})),
    (float, frozenset({"is_integer"})),
    (list, _LIST_METHODS),
    (tuple, _LIST_METHODS),
    (dict, frozenset({"get", "items", "keys", "values", "copy"})),
    (GeneratorType, frozenset()),
    (bytes, frozenset()),
)  # fmt: skip
"""Methods that a template may call, by the type of their owner; the others have no use in one, and some write without bound
(`int.to_bytes`, `str.translate`, `str.expandtabs`)."""

_BY_ITEM = frozenset({
    "batch", "default", "d", "items", "list", "map", "reject", "rejectattr", "reverse", "select", "selectattr", "slice", "sum",
})  # fmt: skip
"""Filters that go through a list without looking into what it holds."""
_AT_ONCE = frozenset({"attr", "count", "first", "last", "length", "random"})

_NEVER_LARGE = ("eq", "ne", "gt", "gteq", "lt", "lteq")


class _Metering(Extension):
    """Helpers that the rewritten template calls."""

    def counted(self, items: Any) -> Any:
        """What a loop runs over, paid in advance; what has no length is gathered first, an item at a time."""
        if hasattr(items, "__len__"):
            pay(STEP * (len(items) + 1))
            return items
        return _gathered(items)

    def concatenated(self, *items: Any) -> str:
        """The operator ``~``."""
        pay(STEP + sum(map(weigh, items)))
        return "".join(map(str, items))

    def literal(self, text: str) -> str:
        """Text that stands in the template itself, which a loop may repeat."""
        pay(STEP + len(text))
        return text

    def made(self, value: Any) -> Any:
        """A list, tuple or dictionary that the template wrote out."""
        pay(STEP)
        weigh(value)
        return value

    def compared(self, value: Any) -> Any:
        """A side of a comparison."""
        pay(STEP + weigh(value))
        return value

    def sliced(self, value: Any, start: Any, stop: Any, step: Any) -> Any:
        """``value[start:stop:step]``."""
        part = value[start:stop:step]
        pay(STEP + price(part))
        return part


class _Rewriter(NodeTransformer):
    """Sends what may be costly through :class:`_Metering`."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        self.generic_visit(node)
        node.iter = _metered("counted", node.iter)  # type: ignore[arg-type]
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return _metered("concatenated", *node.nodes)

    def visit_Output(self, node: nodes.Output) -> nodes.Node:
        self.generic_visit(node)
        node.nodes = [
            _metered("literal", nodes.Const(child.data, lineno=child.lineno)) if isinstance(child, nodes.TemplateData) else child
            for child in node.nodes
        ]
        return node

    def visit_List(self, node: nodes.List) -> nodes.Node:
        self.generic_visit(node)
        return _metered("made", node)

    def visit_Dict(self, node: nodes.Dict) -> nodes.Node:
        self.generic_visit(node)
        return _metered("made", node)

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:
        self.generic_visit(node)
        return _metered("made", node) if node.ctx == "load" else node

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:
        self.generic_visit(node)
        sides = [node.expr, *(operand.expr for operand in node.ops)]
        plain = all(operand.op in _NEVER_LARGE for operand in node.ops)
        if not plain or not any(isinstance(side, nodes.Const) for side in sides):
            node.expr = _metered("compared", node.expr)
            for operand in node.ops:
                operand.expr = _metered("compared", operand.expr)
        return node

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:
        self.generic_visit(node)
        if not isinstance(node.arg, nodes.Slice):
            return node
        bounds = (node.arg.start, node.arg.stop, node.arg.step)
        return _metered("sliced", node.node, *(nodes.Const(None) if bound is None else bound for bound in bounds))


def _metered(name: str, *arguments: nodes.Expr) -> nodes.Call:
    call = nodes.Call(nodes.ExtensionAttribute(_Metering.identifier, name), list(arguments), [], None, None)
    return call.set_lineno(arguments[0].lineno)  # type: ignore[return-value]


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


class _TemplateNamespace(Namespace):
    """``namespace()`` without names that could reach Python's internals; it does not write out what it holds."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        self, args = args[0], args[1:]  # so that a template may have an attribute "self"
        values = dict(*args, **kwargs)
        for name in values:
            _check_name(name)
        Namespace.__init__(self, values)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)

    def __repr__(self) -> str:
        return "<Namespace>"


class _TemplateDict:
    """``dict(…)`` without the class's own attributes."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        """As ``dict.fromkeys``."""
        return dict.fromkeys(*args)


def _check_name(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a namespace cannot hold {name!r}: names with a leading underscore are unsafe")


class BoundedSandbox(ImmutableSandboxedEnvironment):
    """See the top of this file."""

    code_generator_class = _MeteredGenerator
    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self, **options: Any) -> None:
        super().__init__(optimized=False, finalize=_paid_output, **options)
        self.add_extension(_Metering)
        del self.globals["lipsum"]  # no use for it, and it writes without bound
        self.globals.update(dict=_TemplateDict(), namespace=_TemplateNamespace)
        self.filters = {name: paid_filter(name, function) for name, function in self.filters.items()}
        self.tests = {name: _paid_test(function) for name, function in self.tests.items()}  # type: ignore[arg-type]

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """Whether a template may see this attribute."""
        allowed = next((names for kind, names in _METHODS if isinstance(obj, kind)), None)
        if allowed is not None and callable(value) and attr not in allowed:
            return False
        return super().is_safe_attribute(obj, attr, value)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Arithmetic whose result could be huge."""
        if operator == "*":
            check_product(left, right)
        elif operator == "**":
            check_power(left, right)
        elif operator == "%" and isinstance(left, str):
            check_format(left, right)
        elif operator == "+":
            pay(STEP + price(left) + price(right))
        result = super().call_binop(context, operator, left, right)
        weigh(result)
        return result

    def call(self, context: Any, callee: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Calls of functions, macros and methods."""
        if isinstance(getattr(callee, "__self__", None), _Metering):
            return callee(*args)  # pays for itself; jinja's own keywords are for macros
        if callee is range or isinstance(callee, LoopContext):
            pay(STEP * (len(args[0]) if args and hasattr(args[0], "__len__") else 1))
        owner = getattr(getattr(callee, "__wrapped__", callee), "__self__", None)  # the sandbox wraps str.format
        name = getattr(callee, "__name__", "")
        if isinstance(owner, str):
            pay(len(owner) // 32)
            check_growth(name, owner, args, kwargs)
        elif name in _LIST_METHODS and isinstance(owner, list | tuple):
            pay(weigh(owner))
        pay(CALL + STEP * len(args))
        pay(sum(map(price, args)) // 8)
        result = super().call(context, callee, *args, **kwargs)
        pay(price(result))
        return result


def _gathered(items: Iterable[Any]) -> list[Any]:
    """What a generator yields, paid as it comes: a filter that reads it whole could not be stopped."""
    gathered = []
    for item in items:
        pay(STEP + price(item))
        gathered.append(item)
    return gathered


@pass_context
def _paid_output(context: Any, value: Any) -> Any:
    """What ``{{ … }}`` writes. It asks for the context so that jinja does not work it out, unpaid, while it compiles."""
    pay(STEP + weigh(value))
    text = value if isinstance(value, str) else str(value)
    pay(len(text))
    return text


def paid_filter(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter that pays for what it reads and what it makes."""

    @functools.wraps(function)
    def paid(*args: Any, **kwargs: Any) -> Any:
        before = args[:1] if hasattr(function, "jinja_pass_arg") else ()
        values = args[len(before) :]
        subject = values[0] if values else ""
        if hasattr(subject, "__next__"):
            subject = _gathered(subject)
            args = (*before, subject, *values[1:])
        pay(CALL + (0 if name in _AT_ONCE else price(subject) if name in _BY_ITEM else weigh(subject)))
        check_growth(name, subject, values[1:], kwargs)
        result = function(*args, **kwargs)
        pay(price(result))
        return result

    return paid


def _paid_test(function: Callable[..., Any]) -> Callable[..., Any]:
    """A test that pays for the comparison that it makes."""

    @functools.wraps(function)
    def paid(*args: Any, **kwargs: Any) -> Any:
        pay(STEP + (sum(map(weigh, args)) if len(args) > 1 else 0))
        return function(*args, **kwargs)

    return paid
