"""Weights from elsewhere: model hubs, package registries and plain addresses, checked and kept in one cache."""
