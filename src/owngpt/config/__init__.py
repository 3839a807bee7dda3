"""Settings as data: small frozen dataclasses that the command line and Python share (one schema, one help text).

Each is checked once, when it is made; nothing deeper in the house reads the environment or a global.
"""
