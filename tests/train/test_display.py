"""A live line on a terminal, plain lines elsewhere, nothing else in the way."""

from __future__ import annotations

import io
import os
import pty

from owngpt.train.display import LiveLine, PlainLines, Progress, Quiet, clock_time, make_display


def moment() -> Progress:
    return Progress(
        step=1200,
        fraction=0.62,
        loss=2.131,
        bits_per_byte=1.7221,
        tokens_per_second=31234.0,
        matmul_share=0.584,
        seconds_left=250.4,
        held_out=1.8,
    )


def test_a_line_has_time_left_loss_bits_speed_and_share() -> None:
    assert moment().words() == (
        "4:10 left  loss 2.131  1.722 bits/byte  held out 1.800  31.2k tokens/s  58% of matmul  step 1200"
    )


def test_plain_lines_come_every_ten_seconds_and_cost_nothing_between() -> None:
    now, made = [0.0], []
    stream = io.StringIO()
    display = PlainLines(stream, clock=lambda: now[0])

    def make() -> Progress:
        made.append(now[0])
        return moment()

    for tick in range(250):
        now[0] = tick / 10
        display.update(make)
    assert made == [10.0, 20.0]
    assert stream.getvalue() == f" 62%  {moment().words()}\n" * 2


def test_quiet_shows_only_what_must_be_said() -> None:
    stream = io.StringIO()
    display = make_display(quiet=True, stream=stream)
    display.update(lambda: 1 / 0)
    display.say("step 5: held-out text 2.1")
    display.warn("checkpoint damaged")
    assert stream.getvalue() == "checkpoint damaged\n"
    assert isinstance(display, Quiet)


def test_no_live_line_where_nobody_looks() -> None:
    assert isinstance(make_display(stream=io.StringIO()), PlainLines)


def test_the_live_line_is_drawn_on_a_terminal_and_taken_away() -> None:
    controller, terminal = pty.openpty()
    stream = os.fdopen(terminal, "w", encoding="utf-8")
    display = make_display(stream=stream)
    assert isinstance(display, LiveLine)
    display.update(moment)
    display.say("a [bold] note")
    display.close()
    stream.flush()
    shown = b""
    while b"\x1b[?25h" not in shown:  # the cursor comes back last
        shown += os.read(controller, 65536)
    stream.close()
    os.close(controller)
    words = shown.decode("utf-8")
    assert "4:10 left" in words and "a [bold] note" in words


def test_times_are_written_as_a_clock_shows_them() -> None:
    assert [clock_time(seconds) for seconds in (0, 59.6, 75, 3700, -1)] == ["0:00", "1:00", "1:15", "1:01:40", "0:00"]
