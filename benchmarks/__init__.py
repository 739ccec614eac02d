"""Measurements that users can repeat; each is a module with a command line, none is imported by the package."""
