"""Against forgetting: general text beside the examples, of the owner's choice or written by the model itself."""
