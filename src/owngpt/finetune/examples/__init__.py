"""What the rows of a person's files mean."""
