"""llama.cpp's own server, asked over HTTP on this machine: the wheel `xllamacpp`, or any build of `llama-server`.

Where one text is written, the server's own clock counts, which leaves HTTP out.
"""

from __future__ import annotations

import http.client
import json
import os
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import urlsplit

from owngpt.bench.side import Figures, Prompt, SideSpec, gaps, split_gaps

TIMEOUT = 1800.0
START_SECONDS = 120.0
FLASH = {"auto": -1, "off": 0, "on": 1}
"""Names of the settings of its fused attention, and their numbers."""
BATCH = 2048


class LlamaCpp:
    """See :class:`owngpt.bench.side.Side`. ``options["server"]`` names a llama-server to run instead of the wheel's."""

    def __init__(self, spec: SideSpec) -> None:
        self.spec = spec
        self.flash = "auto"
        self._server: _Wheel | _Program | None = None
        self._shape = (0, 0)

    def info(self) -> dict[str, Any]:
        """See :class:`owngpt.bench.side.Side`."""
        version, features = _Program.version(self.spec) if self.spec.options.get("server") else _Wheel.version()
        return {
            "version": version,
            "settings": f"{self.spec.weights}, flash attention {self.flash}; built with {features}",
            "weight_bytes": Path(self.spec.path).stat().st_size,
        }

    def tune(self, prompt: Prompt) -> dict[str, Any]:
        """Take the setting of flash attention with which reading and writing together are faster."""
        seconds = {}
        for flash in ("on", "off"):
            self.flash = flash
            self._close_server()
            for _ in range(2):
                seconds[flash] = self.prefill(prompt)["seconds"] + self.write([prompt[:32]], 48)["seconds"]
        self.flash = min(seconds, key=seconds.__getitem__)
        self._close_server()
        return {"flash_attention": seconds}

    def prefill(self, prompt: Prompt) -> Figures:
        """See :class:`owngpt.bench.side.Side`."""
        self._serve(1, self.spec.longest)
        return {"seconds": self._write(prompt, 1)["prompt_ms"] / 1e3}

    def write(self, prompts: Sequence[Prompt], new: int) -> Figures:
        """See :class:`owngpt.bench.side.Side`. All are being written while the one is that began last: its time, and every
        text's tokens, make the rate."""
        self._serve(len(prompts), len(prompts[0]) + new + 8)
        began = time.perf_counter()
        with ThreadPoolExecutor(len(prompts)) as pool:
            timings = list(pool.map(lambda prompt: self._write(prompt, new), prompts))
        seconds = time.perf_counter() - began
        assert all(timing["predicted_n"] == new for timing in timings), "llama.cpp stopped early"
        figures = {"seconds": seconds}
        if new > 1:
            figures["rate"] = len(prompts) * (new - 1) / (min(timing["predicted_ms"] for timing in timings) / 1e3)
        return figures

    def prefix(self, cold: Prompt, seen: Prompt) -> Figures:
        """See :class:`owngpt.bench.side.Side`."""
        self._serve(1, self.spec.longest)
        first, second = (self._write(prompt, 1, cache=True)["prompt_ms"] / 1e3 for prompt in (cold, seen))
        return {"cold": first, "seen": second}

    def arrival(self, prompts: Sequence[Prompt], new: int, arriving: Prompt) -> Figures:
        """See :class:`owngpt.bench.side.Side`."""
        self._serve(len(prompts) + 1, max(len(arriving), len(prompts[0]) + new) + 8)
        times: list[list[float]] = [[] for _ in prompts]

        def read(index: int) -> None:
            for at in self._stream(prompts[index], new):
                times[index].append(at)

        readers = [Thread(target=read, args=(index,), daemon=True) for index in range(len(prompts))]
        for reader in readers:
            reader.start()
        while min(map(len, times)) < new // 3 and any(reader.is_alive() for reader in readers):
            time.sleep(0.005)
        start = time.perf_counter()
        end = next(iter(list(self._stream(arriving, 1))))
        for reader in readers:
            reader.join()
        return gaps(*split_gaps(times, start, end), end - start)

    def process_id(self) -> int:
        """See :class:`owngpt.bench.side.Side`."""
        return os.getpid() if self._server is None else self._server.process_id

    def close(self) -> None:
        """See :class:`owngpt.bench.side.Side`."""
        self._close_server()

    def _serve(self, parallel: int, length: int) -> None:
        """A server for so many texts at once of that many tokens each; the one that runs, if it is for the same number."""
        if self._server is not None and self._shape[0] == parallel and self._shape[1] >= length:
            return
        self._close_server()
        kind = _Program if self.spec.options.get("server") else _Wheel
        self._server = kind(self.spec, parallel, length, self.flash)
        self._shape = (parallel, length)

    def _close_server(self) -> None:
        if self._server is not None:
            self._server.close()
        self._server = None

    def _write(self, prompt: Prompt, new: int, *, cache: bool = False) -> dict[str, Any]:
        connection, answer = self._ask(prompt, new, cache_prompt=cache)
        try:
            timings: dict[str, Any] = json.load(answer)["timings"]
        finally:
            connection.close()
        return timings

    def _stream(self, prompt: Prompt, new: int) -> Iterator[float]:
        """When each token came."""
        connection, answer = self._ask(prompt, new, cache_prompt=False, stream=True, return_tokens=True)
        try:
            for line in answer:
                if line.startswith(b"data: {") and json.loads(line[6:]).get("tokens"):
                    yield time.perf_counter()
        finally:
            connection.close()

    def _ask(self, prompt: Prompt, new: int, **options: Any) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
        assert self._server is not None
        asked = {"prompt": list(prompt), "n_predict": new, "temperature": 0, "ignore_eos": True, **options}
        address = urlsplit(self._server.address)
        connection = http.client.HTTPConnection(str(address.hostname), address.port, timeout=TIMEOUT)
        connection.request("POST", "/completion", json.dumps(asked), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        if answer.status != 200:
            raise RuntimeError(f"llama.cpp answers {answer.status}: {answer.read(500).decode(errors='replace')}")
        return connection, answer


class _Wheel:
    """The server inside of this process."""

    def __init__(self, spec: SideSpec, parallel: int, length: int, flash: str) -> None:
        import xllamacpp

        parameters = xllamacpp.CommonParams()
        parameters.model.path = spec.path
        parameters.n_ctx, parameters.n_parallel = parallel * length, parallel
        parameters.n_batch, parameters.n_threads_http = BATCH, parallel + 2
        parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = spec.threads
        parameters.flash_attn_type = xllamacpp.llama_flash_attn_type(FLASH[flash])
        parameters.cache_ram_mib = 0  # copies of old prompts outside of the slots, which nothing here asks for again
        parameters.port, parameters.warmup, parameters.verbosity = 0, False, -1
        self._server = xllamacpp.Server(parameters)
        self.address: str = self._server.listening_address
        self.process_id = os.getpid()

    def close(self) -> None:
        """It ends when nobody holds it."""
        del self._server

    @staticmethod
    def version() -> tuple[str, str]:
        """(version, instructions that it was compiled for)."""
        import xllamacpp

        return f"xllamacpp {version('xllamacpp')}", _features(xllamacpp.get_system_info())


class _Program:
    """A llama-server of the person's own build."""

    def __init__(self, spec: SideSpec, parallel: int, length: int, flash: str) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        options = {
            "--model": spec.path, "--ctx-size": parallel * length, "--parallel": parallel, "--threads": spec.threads,
            "--threads-batch": spec.threads, "--batch-size": BATCH, "--flash-attn": flash, "--threads-http": parallel + 2,
            "--host": "127.0.0.1", "--port": port,
        }  # fmt: skip
        command = [spec.options["server"], *(str(word) for pair in options.items() for word in pair), "--no-warmup"]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.process_id = self._process.pid
        self.address = f"http://127.0.0.1:{port}"
        self._wait(port)

    def close(self) -> None:
        """End it."""
        self._process.terminate()
        self._process.wait()

    def _wait(self, port: int) -> None:
        end = time.perf_counter() + START_SECONDS
        while time.perf_counter() < end and self._process.poll() is None:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
            try:
                connection.request("GET", "/health")
                if connection.getresponse().status == 200:
                    return
            except OSError:
                pass
            finally:
                connection.close()
            time.sleep(0.02)
        self.close()
        raise RuntimeError(f"llama-server did not answer; its exit code is {self._process.returncode}")

    @staticmethod
    def version(spec: SideSpec) -> tuple[str, str]:
        """(version, where it is)."""
        told = subprocess.run([spec.options["server"], "--version"], capture_output=True, text=True, timeout=30, check=False)
        lines = [line for line in (told.stderr + told.stdout).splitlines() if line.startswith(("version", "built"))]
        return "; ".join(lines) or "unknown", f"its own makers' flags ({spec.options['server']})"


def _features(told: str) -> str:
    """``AVX2, FMA`` out of what it says of itself."""
    return ", ".join(
        part.partition("=")[0].strip().rpartition(" ")[2] for part in told.split("|") if part.strip().endswith("= 1")
    )
