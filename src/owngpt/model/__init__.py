"""What a GPT is: pure modules and maths. Knows no files, no tokenizer, no devices policy, no torch.distributed."""
