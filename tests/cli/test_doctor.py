"""`owngpt doctor` measures this machine and says what fits."""

from __future__ import annotations

import json
import os

import pytest

from owngpt.cli.main import main


@pytest.mark.slow
def test_doctor_json_describes_this_machine(capsys):
    assert main(["doctor", "--minutes", "1", "--json"]) == 0
    captured = capsys.readouterr()
    found = json.loads(captured.out)
    assert found["machine"]["cores"] <= (os.cpu_count() or 1)
    assert 0 < found["machine"]["memory_available"] <= found["machine"]["memory_total"]
    assert found["ceilings"]["matmul_bf16_flops"] > 1e8
    assert found["ceilings"]["matmul_fp32_flops"] > 1e8
    assert found["ceilings"]["memory_read_bytes"] > 1e7
    assert isinstance(found["kernels"]["compiled"], bool)
    assert all(values["tiles_from"] >= 0 and values["threads"] >= 1 for values in found["tuning"])
    assert found["disk_free"] > 0
    assert "model" in found["fits"]
