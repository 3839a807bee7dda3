"""Fused operations under the model: compiled C on the CPU in bfloat16, plain PyTorch everywhere else, the same results.

Every operation has both forms in one file, so that the plain one says what the compiled one means.
"""
