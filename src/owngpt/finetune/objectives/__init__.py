"""What a model learns when it is tuned: answers, preferences or classes. Each is an :class:`owngpt.train.step.Objective`."""
