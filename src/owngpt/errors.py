"""What a user did wrong, or what the machine refused, said in one sentence with the fix.

Everything that a person can cause raises an :class:`OwnGPTError`; the command line prints its message alone,
without a traceback. ``assert`` is kept for our own invariants.
"""

from __future__ import annotations


class OwnGPTError(Exception):
    """A failure that a person can act on. The message names the value, the limit and the fix."""

    exit_code = 1


class UsageError(OwnGPTError):
    """An option or argument is wrong: nothing was started."""

    exit_code = 2


class DataError(OwnGPTError):
    """The text that was given cannot be used (empty, unreadable, vanished, not text)."""


class DownloadError(OwnGPTError):
    """A download failed, was refused, or did not turn out to be what was promised."""


class ModelFolderError(OwnGPTError):
    """A model folder or tokenizer is missing something, holds something else or does not fit together."""


class CheckpointError(OwnGPTError):
    """A checkpoint is damaged, missing or belongs to another run."""


class FolderBusyError(OwnGPTError):
    """Another process is writing to this folder."""


class StorageError(OwnGPTError):
    """The disk is full, read-only or not ours to write."""


class TrainingDivergedError(OwnGPTError):
    """Loss or gradients stayed non-finite; the diagnosis is in the message."""


class ParallelError(OwnGPTError):
    """One of several processes that train together has ended, or they cannot find each other."""


class EngineError(OwnGPTError):
    """A request could not be carried out: the engine was closed, or the model could not run."""
