"""What is done to text between the files a person names and the tokens a model reads."""

from __future__ import annotations

from dataclasses import dataclass

from owngpt.config.checks import at_least, within


@dataclass(frozen=True)
class DataConfig:
    """Cleaning, de-duplication and splitting. Every value is checked when the record is made."""

    deduplicate: bool = True
    """Drop documents whose text was seen before, byte for byte after cleaning."""
    near_duplicates: bool = True
    """Also drop documents that nearly equal an earlier one (MinHash of word or character shingles)."""
    near_duplicate_threshold: float = 0.8
    """Estimated Jaccard similarity from which two documents count as nearly equal."""
    mask_personal_data: bool = False
    """Replace email addresses, phone, identity and card numbers, IP addresses and keys by a label."""
    repair_text: bool = True
    """Mend wrongly decoded text (ftfy) and normalise Unicode to NFC."""
    validation_fraction: float | None = None
    """Share of the documents held out and never trained on; none lets the size of the corpus decide."""
    seed: int = 0
    """Chooses which documents are held out."""
    workers: int = 0
    """Processes that tokenize; 0 is one for every core."""

    def __post_init__(self) -> None:
        within("near_duplicate_threshold", self.near_duplicate_threshold, 0.5, 1.0)
        if self.validation_fraction is not None:
            within("validation_fraction", self.validation_fraction, 0, 0.5, low_open=True)
        within("seed", self.seed, 0, 2**63 - 1)
        at_least("workers", self.workers, 0)
