"""Sequences of different lengths laid into rows of one length with little room left over."""

from __future__ import annotations

import numpy as np


def pack(lengths: np.ndarray, capacity: int) -> list[list[int]]:
    """Best fit, longest first: each sequence goes where it leaves the least room, into a new row if it fits nowhere.

    Sequences of one length are taken in the order given, so that the rows are a function of that order; how many rows there
    are depends on the lengths alone. (Packing by best fit, arXiv 2404.10830.)

    :param lengths: (N,) each from 0 to ``capacity``.
    :returns: the indices in each row, in the order in which they were laid down.
    """
    assert not len(lengths) or 0 <= int(lengths.min()) <= int(lengths.max()) <= capacity
    rows: list[list[int]] = []
    with_room: dict[int, list[int]] = {}
    rooms = 0
    """Bit r is set while some row has room r: the least room of at least n is the lowest bit of rooms >> n."""
    for index in np.argsort(-lengths, kind="stable").tolist():
        length = int(lengths[index])
        fitting = rooms >> length
        if fitting:
            room = length + (fitting & -fitting).bit_length() - 1
            row = with_room[room].pop()
            if not with_room[room]:
                rooms ^= 1 << room
            rows[row].append(index)
        else:
            room, row = capacity, len(rows)
            rows.append([index])
        left = room - length
        with_room.setdefault(left, []).append(row)
        rooms |= 1 << left
    return rows
