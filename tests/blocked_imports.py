"""Code for a process in which some packages cannot be imported, as if they were not installed."""

#: Put before the rest of a program; ``.format(barred=...)`` with the names of the packages.
BLOCK = """
import importlib, importlib.util, sys

real_find_spec = importlib.util.find_spec
barred = set({barred!r})

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in barred:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

# transformers asks whether optional packages exist; the answer must be no, not an exception.
importlib.util.find_spec = lambda name, *a: None if name.partition(".")[0] in barred else real_find_spec(name, *a)
sys.meta_path.insert(0, Blocker())
"""
