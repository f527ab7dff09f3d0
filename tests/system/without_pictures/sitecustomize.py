"""On the path of a process, hides what draws: that takes seconds."""

import sys

for library in ("matplotlib", "sklearn"):
    sys.modules[library] = None
