"""The public face: what `import owngpt` gives, and what it costs."""

from __future__ import annotations

import subprocess
import sys

import pytest

import owngpt


def test_every_public_name_is_there():
    for name in owngpt.__all__:
        assert getattr(owngpt, name) is not None
    assert set(owngpt.__all__) <= set(dir(owngpt))


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        owngpt.trian  # noqa: B018


def test_importing_the_package_loads_no_heavy_library():
    code = "import sys, owngpt; print([name for name in ('torch', 'numpy', 'tokenizers', 'rich') if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
