"""`from pilothouse import LLM`, as from vLLM: this module is replaced by the class as it is imported.

`pilothouse` is a namespace over several folders and has no code of its own that could offer a name, so a name of it can
only be a submodule. Python's import system binds whatever a module left under its name in `sys.modules`, which is
documented. Type checkers do not follow that: `from pilothouse.offline import LLM` is the same class, with types.
"""  # noqa: N999

import sys

from pilothouse.offline import LLM

sys.modules[__name__] = LLM  # type: ignore[assignment]
