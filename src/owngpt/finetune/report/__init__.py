"""What a fine-tuning run gained and what was forgotten: measured before and after, compared, told in plain words."""
