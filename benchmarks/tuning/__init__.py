"""The parts of benchmarks/finetune.py, one noun a file."""
