"""The model families. Each is one file: a frozen configuration and the module that it builds."""
